package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What docs/chat.md shows is what stands in the program, but for how far it is indented.
func TestDocsShowTheProgram(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var program strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		program.WriteString(flat(string(text)))
	}
	text, err := os.ReadFile("../../docs/chat.md")
	require.NoError(t, err)
	shown := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	require.Len(t, shown, 6)
	for _, m := range shown {
		require.Contains(t, program.String(), flat(m[1]))
	}
}

// flat returns the text with its lines not indented.
func flat(text string) string {
	return "\n" + regexp.MustCompile(`(?m)^[ \t]+`).ReplaceAllString(text, "")
}
