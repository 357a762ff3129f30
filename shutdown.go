package tp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Shutdown ends the peer in good order. It runs the PreShutdown hooks, closes the listeners, asks
// the other sides to begin nothing more, answers their new pulls with StatusServiceUnavailable, see
// [NotRun], waits for running handlers and for this side's own pulls, and closes the sessions when
// their replies are sent. Handlers that still run may go on pulling; what else this side wants to
// pull is refused.
//
// The other sides have up to five seconds to read what was sent and to close.
//
// If ctx ends first, the rest is closed as by [Peer.Close], and the error, which
// wraps ctx's, says how much was abandoned. A handler that calls Shutdown waits
// for itself: start it with go.
func (p *Peer) Shutdown(ctx context.Context) error {
	p.preShutdown(ctx)
	err := p.stopAccepting()
	p.sendHeldBack(ctx)
	for _, cn := range p.sessions.live() {
		cn.goAway(false)
	}
	for {
		handlers, pulls := p.sessions.busy()
		if handlers == 0 && pulls == 0 {
			break
		}
		select {
		case <-p.quiet:
			continue
		case <-p.closed: // by another call
			p.mu.Lock()
			defer p.mu.Unlock()
			if err == nil {
				err = p.abandoned
			}
			return err
		case <-ctx.Done():
		}
		if handlers, pulls = p.sessions.busy(); handlers == 0 && pulls == 0 {
			break
		}
		err = fmt.Errorf("tp: shutdown: abandoned %d running handlers and %d pulls: %w", handlers, pulls,
			ctx.Err())
		p.mu.Lock()
		p.abandoned = err
		p.mu.Unlock()
		_ = p.Close()
		return err
	}
	p.awaitHandshakes(ctx)
	p.finishSessions(ctx)
	// What had been sent before the other sides knew has been read by now.
	p.awaitHandlers(ctx)
	if e := p.Close(); err == nil {
		err = e
	}
	return err
}

// preShutdown runs the PreShutdown hooks, if nobody has, and waits for them: until ctx or their time ends, or
// the peer is closed.
func (p *Peer) preShutdown(ctx context.Context) {
	if !p.beginsToEnd() {
		select {
		case <-p.told:
		case <-ctx.Done():
		case <-p.closed:
		}
		return
	}
	defer close(p.told)
	if len(p.chain.preShutdown) == 0 {
		return
	}
	ctx, cancel := bounded(ctx, p.cfg.HookTimeout)
	defer cancel()
	p.runPreShutdown(ctx, p.closed)
}

// runPreShutdown runs the PreShutdown hooks, and waits for them until ctx ends or given is closed.
func (p *Peer) runPreShutdown(ctx context.Context, given <-chan struct{}) {
	done := onItsOwn(func() error {
		p.chain.preShutdown.runEach(&shutdownCtx{ctx, p}, func(err *hookError) {
			logf(LevelError, "plugin failed", "%v", errAttr(err))
		})
		return nil
	})
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done: // at the same time
		default:
			logf(LevelWarn, "hooks are not waited for", "PreShutdown hooks have not ended in their time; "+
				"the peer ends without them")
		}
	case <-given:
	}
}

// shutdownCtx is a ShutdownCtx.
type shutdownCtx struct {
	ctx  context.Context
	peer *Peer
}

func (s *shutdownCtx) Peer() *Peer              { return s.peer }
func (s *shutdownCtx) Context() context.Context { return s.ctx }
func (s *shutdownCtx) lines() *lines            { return &s.peer.log }

// beginsToEnd reports whether the PreShutdown hooks are to be run now, by the caller.
func (p *Peer) beginsToEnd() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.ending
	p.ending = true
	return first
}

// sendHeldBack has groups send what they hold back. It waits for that no longer than ctx lasts.
func (p *Peer) sendHeldBack(ctx context.Context) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		p.sendAll()
	}()
	select {
	case <-sent:
	case <-ctx.Done():
	case <-p.closed:
	}
}

// awaitHandshakes waits until the connections that were accepted before the listeners were closed are
// sessions, for drainLinger at most.
func (p *Peer) awaitHandshakes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainLinger)
	defer cancel()
	for p.acceptors.Load() > 0 || p.handshakes.Len() > 0 {
		select {
		case <-p.quiet:
		case <-p.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

// awaitHandlers waits until no handler runs.
func (p *Peer) awaitHandlers(ctx context.Context) {
	for {
		if handlers, _ := p.sessions.busy(); handlers == 0 {
			return
		}
		select {
		case <-p.quiet:
		case <-p.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

// finishSessions writes out what waits on each connection, and waits until the other sides have closed
// theirs.
func (p *Peer) finishSessions(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainLinger)
	defer cancel()
	var wg sync.WaitGroup
	for _, cn := range p.sessions.live() {
		wg.Go(func() {
			cn.goAway(true)
			deadline, _ := ctx.Deadline()
			if cn.sock.CloseWrite(time.Until(deadline)) {
				select {
				case <-cn.doneChan():
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
}

// shutdownAll shuts the peers down at the same time, each within the whole timeout.
func shutdownAll(peers []*Peer, timeout time.Duration) error {
	ctx := context.Background()
	if timeout >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { errs[i] = p.Shutdown(ctx) })
	}
	wg.Wait()
	var first error
	for _, err := range errs {
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Close ends the peer at once: listeners and sessions are closed, pulls in
// flight complete with StatusConnClosed, no handler is waited for, and pushes that
// wait for one are dropped. PreShutdown hooks run meanwhile, unless Shutdown has run them, and have
// a second. Close may be called more than once and from anywhere.
func (p *Peer) Close() error {
	defer p.tellOfClose()()
	err := p.stopAccepting()
	p.setState(peerClosed)
	p.handshakes.Close()
	sessions := p.sessions.close()
	errs := make(chan error, len(sessions))
	for _, s := range sessions { // at the same time, since each may take a second
		go func() { errs <- s.Close() }()
	}
	for range sessions {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	for _, cn := range p.sessions.lingering() {
		cn.abandon()
	}
	p.mu.Lock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	p.mu.Unlock()
	p.workers.Close()
	p.keeper.Stop()
	p.unregister()
	return err
}

// closeHooksTime is how long PreShutdown hooks have when the peer is closed, as long as closing a session may
// take.
const closeHooksTime = time.Second

// tellOfClose runs the PreShutdown hooks on a goroutine, if nobody has. The function that it returns waits
// until they have returned or have had their time.
func (p *Peer) tellOfClose() (wait func()) {
	if len(p.chain.preShutdown) == 0 || !p.beginsToEnd() {
		return func() {}
	}
	go func() {
		defer close(p.told)
		ctx, cancel := context.WithTimeout(context.Background(), closeHooksTime)
		defer cancel()
		p.runPreShutdown(ctx, nil)
	}()
	return func() { <-p.told }
}

// stopAccepting closes the listeners.
func (p *Peer) stopAccepting() error {
	p.setState(peerDraining)
	p.mu.Lock()
	select {
	case <-p.closing:
	default:
		close(p.closing)
	}
	p.mu.Unlock()
	var err error
	for _, ln := range p.allListeners() { // no others are added any more
		if e := ln.Close(); e != nil && !errors.Is(e, net.ErrClosed) && !errors.Is(e, os.ErrClosed) &&
			err == nil {
			err = e
		}
	}
	return err
}

func (p *Peer) setState(state peerState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if state > p.state {
		p.state = state
		p.drain.Store(true)
		p.over.Store(state == peerClosed)
	}
}

// serving holds the peers of this process that have connections or listeners.
var serving struct {
	mu    sync.Mutex // guards peers
	peers map[*Peer]struct{}
}

func servingPeers() []*Peer {
	serving.mu.Lock()
	defer serving.mu.Unlock()
	return slices.Collect(maps.Keys(serving.peers))
}

// register adds the peer to the serving peers, until Close.
func (p *Peer) register() {
	serving.mu.Lock()
	defer serving.mu.Unlock()
	if p.draining() {
		return
	}
	if serving.peers == nil {
		serving.peers = make(map[*Peer]struct{})
	}
	serving.peers[p] = struct{}{}
}

func (p *Peer) unregister() {
	serving.mu.Lock()
	defer serving.mu.Unlock()
	delete(serving.peers, p)
}
