package tp

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever imports this module gets what it depends on, and nothing that the modules under bench, contrib and
// examples need. A dependency more is a decision: it changes testdata/dependencies.txt.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	require.NoError(t, err)
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	require.NoError(t, json.Unmarshal(out, &mod))
	var got []string
	for _, r := range mod.Require {
		line := r.Path
		if r.Indirect {
			line += " indirect"
		}
		got = append(got, line)
	}
	slices.Sort(got)
	want, err := os.ReadFile("testdata/dependencies.txt")
	require.NoError(t, err)
	require.Equal(t, strings.Fields(strings.ReplaceAll(string(want), " ", "_")),
		strings.Fields(strings.ReplaceAll(strings.Join(got, "\n"), " ", "_")))
}
