package tp

import (
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/internal/handover"
)

// defaultShutdownTimeout holds until SetShutdown is called.
const defaultShutdownTimeout = 30 * time.Second

// grace is how the process is to be shut down.
var grace = struct {
	mu            sync.Mutex // guards the fields below
	timeout       time.Duration
	firstSweep    func() error
	beforeExiting func() error
	// exiting is made by the Shutdown that ends the process. It is closed when
	// that has returned, which only tests see.
	exiting chan struct{}
}{timeout: defaultShutdownTimeout}

// osExit ends the process; tests put something else here.
var osExit = os.Exit

func exitProcess(code int) { osExit(code) }

// SetShutdown says how [Shutdown] and [GraceSignal] end the process: how long
// they wait for all peers to drain, taken as it is, with a negative value for no
// limit and zero for no waiting; what runs before that; and what runs after it,
// before the process exits. Either function may be nil. Without SetShutdown the
// timeout is 30 s.
func SetShutdown(timeout time.Duration, firstSweep, beforeExiting func() error) {
	grace.mu.Lock()
	defer grace.mu.Unlock()
	grace.timeout, grace.firstSweep, grace.beforeExiting = timeout, firstSweep, beforeExiting
}

// Shutdown drains every peer of the process with [Peer.Shutdown] and then ends
// the process: with exit code 0, or 1 if something was abandoned or one of the
// functions of [SetShutdown] failed. A timeout given here replaces that of
// SetShutdown. It does not return; a second call waits for the first. A handler
// that calls it waits for itself: start it with go.
func Shutdown(timeout ...time.Duration) {
	grace.mu.Lock()
	if grace.exiting != nil {
		grace.mu.Unlock()
		waitForExit()
		return
	}
	exiting := make(chan struct{})
	defer close(exiting)
	grace.exiting = exiting
	limit, firstSweep, beforeExiting := grace.timeout, grace.firstSweep, grace.beforeExiting
	grace.mu.Unlock()
	peers := servingPeers()
	if len(timeout) > 0 {
		limit = timeout[0]
	}
	handover.End()
	logf(LevelInfo, "shutting down", "shutting down %d peers", slog.Int("peers", len(peers)))
	code := 0
	check := func(what string, err error) {
		if err != nil {
			logf(LevelError, "shutdown failed", "%s: %v", slog.String("step", what), errAttr(err))
			code = 1
		}
	}
	if firstSweep != nil {
		check("shutdown: first sweep", firstSweep())
	}
	check("shutdown", shutdownAll(peers, limit))
	if beforeExiting != nil {
		check("shutdown: before exiting", beforeExiting())
	}
	if code == 0 {
		logf(LevelInfo, "shut down", "shut down")
	}
	exitProcess(code)
}

// waitForExit holds the caller while a [Shutdown] is about to end the process,
// so that a main function whose Listen returns does not end it sooner.
func waitForExit() {
	grace.mu.Lock()
	exiting := grace.exiting
	grace.mu.Unlock()
	if exiting != nil {
		<-exiting
	}
}
