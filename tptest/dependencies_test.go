package tptest_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Programs have neither this package nor what it imports for tests.
func TestProgramsNeedNoTestPackages(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "..").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	require.Contains(t, deps, "github.com/henrylee2cn/teleport")
	for _, not := range []string{"testing", "github.com/henrylee2cn/teleport/tptest",
		"github.com/stretchr/testify/assert", "go.uber.org/goleak"} {
		require.NotContains(t, deps, not)
	}
}
