// Package compare has one small service written twice, for the table in docs/calls.md.
package compare

import (
	"context"
	"slices"
	"testing"

	"github.com/henrylee2cn/teleport/bench/compare/withgrpc"
	"github.com/henrylee2cn/teleport/bench/compare/withtp"
)

// Both do the same.
func TestBothDoTheSame(t *testing.T) {
	want := []string{"3 <nil>", "true", "too young: 18", "hello Ada"}
	for name, run := range map[string]func(context.Context) ([]string, error){"tp": withtp.Run,
		"grpc": withgrpc.Run} {
		seen, err := run(t.Context())
		if err != nil || !slices.Equal(seen, want) {
			t.Errorf("%s: %q, %v", name, seen, err)
		}
	}
}
