package resolver

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// patience bounds every wait, so that a failure does not hang.
const patience = 30 * time.Second

// logged collects what is logged as long as the test runs.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func collectLog(t *testing.T) *logged {
	l := new(logged)
	level := tp.LogLevel()
	tp.SetLogger(l)
	tp.SetLogLevel(tp.LevelInfo)
	t.Cleanup(func() { tp.SetLogger(nil); tp.SetLogLevel(level) })
	return l
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Level.String()+" "+r.Message)
	return nil
}

// containing returns how many lines have the text in them.
func (l *logged) containing(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// told has the lists that a resolver has told, one after another.
type told chan []tp.Server

// resolve runs r until the test ends.
func resolve(t *testing.T, r tp.Resolver) told {
	ctx, cancel := context.WithCancel(context.Background())
	c, done := make(told, 100), make(chan error, 1)
	go func() { done <- r.Resolve(ctx, func(servers []tp.Server) { c <- servers }) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
	return c
}

func (c told) next(t *testing.T) []tp.Server {
	t.Helper()
	select {
	case servers := <-c:
		return servers
	case <-time.After(patience):
		require.FailNow(t, "nothing was told")
		return nil
	}
}

// addrs returns the addresses of servers, separated by spaces.
func addrs(servers []tp.Server) string {
	var all []string
	for _, s := range servers {
		all = append(all, s.Addr)
	}
	return strings.Join(all, " ")
}
