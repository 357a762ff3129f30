package tp

import (
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"

	"github.com/henrylee2cn/teleport/internal/handover"
)

// GraceSignal waits for SIGINT or SIGTERM and then calls [Shutdown]; a second
// signal ends the process at once with exit code 1. On SIGUSR2, where there is one,
// it calls [Reboot]. It is usually started as go tp.GraceSignal(), first thing in
// main. A SIGUSR2 that comes when a listener of [Peer.Listen] or [NewListener] is served
// already, and the goroutine of GraceSignal has not begun, is kept for it.
func GraceSignal() { awaitSignals(notifySignals()) }

func notifySignals() chan os.Signal {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, append(graceSignals, handover.Signals...)...)
	early.take(signals)
	return signals
}

// early keeps a signal to reboot that comes before GraceSignal has begun. As soon as a listener is served
// others may take this process for ready and send the signal, but the goroutine of GraceSignal may start
// late. Without early the signal would end the process.
var early earlySignals

type earlySignals struct {
	mu     sync.Mutex // guards the fields below
	kept   chan os.Signal
	closed bool
}

func (e *earlySignals) keep() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.kept != nil || len(handover.Signals) == 0 {
		return
	}
	e.kept = make(chan os.Signal, 1)
	signal.Notify(e.kept, handover.Signals...)
}

// take sends the signal that was kept, if there is one, to signals. The caller has already called
// signal.Notify with that channel.
func (e *earlySignals) take(signals chan os.Signal) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.kept == nil {
		return
	}
	signal.Stop(e.kept)
	if len(e.kept) > 0 && len(signals) == 0 { // otherwise it may be the same signal
		signals <- <-e.kept
	}
	e.kept = nil
}

func awaitSignals(signals chan os.Signal) {
	defer signal.Stop(signals)
	for ending := false; ; {
		sig := <-signals
		switch {
		case slices.Contains(handover.Signals, sig):
			logf(LevelInfo, "received a signal to reboot", "received %v: rebooting", slog.Any("signal", sig))
			go Reboot()
		case !ending:
			ending = true
			logf(LevelInfo, "received a signal to end", "received %v", slog.Any("signal", sig))
			go Shutdown()
		default:
			logf(LevelError, "received a second signal: exiting without waiting",
				"received %v again: exiting without waiting", slog.Any("signal", sig))
			exitProcess(1)
			return
		}
	}
}

func init() {
	handover.Told.Serves = early.keep
	handover.Told.TookOver = func() {
		logf(LevelInfo, "took over from the process before", "took over from the process before")
	}
	handover.Told.NotNotified = func(state string, err error) {
		logf(LevelWarn, "systemd cannot be told", "systemd cannot be told %s: %v",
			slog.String("state", state), errAttr(err))
	}
}
