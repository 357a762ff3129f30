package tp

import (
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/internal/handover"
)

// defaultShutdownTimeout holds until SetShutdown is called.
const defaultShutdownTimeout = 30 * time.Second

// grace is the process-wide state: the peers that have connections or listeners,
// and how they are to be shut down.
var grace = struct {
	mu            sync.Mutex // guards the fields below
	peers         map[*Peer]struct{}
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
	peers := make([]*Peer, 0, len(grace.peers))
	for p := range grace.peers {
		peers = append(peers, p)
	}
	grace.mu.Unlock()
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

// early keeps a signal to reboot from when others may know that this process is ready until
// GraceSignal has begun, which has a goroutine of its own that the system may start late: the
// signal would end the process.
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

// take hands what was kept to signals, which are notified already.
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
			logf(LevelError, "received a second signal: exiting without waiting", "received %v again: exiting without waiting", slog.Any("signal", sig))
			exitProcess(1)
			return
		}
	}
}

// register makes the peer known to Shutdown, until Close.
func (p *Peer) register() {
	grace.mu.Lock()
	defer grace.mu.Unlock()
	if p.draining() {
		return
	}
	if grace.peers == nil {
		grace.peers = make(map[*Peer]struct{})
	}
	grace.peers[p] = struct{}{}
}

func (p *Peer) unregister() {
	grace.mu.Lock()
	defer grace.mu.Unlock()
	delete(grace.peers, p)
}
