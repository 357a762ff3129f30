package nats_test

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// line is between a hub and its broker, and can stop to carry anything without being closed.
type line struct {
	ln net.Listener
	to string

	mu      sync.Mutex // guards the fields below
	moves   sync.Cond  // of mu
	stopped bool
	conns   []net.Conn
	tasks   sync.WaitGroup
}

func newLine(t testing.TB, b *broker) *line {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := &line{ln: ln, to: b.Addr().String()}
	l.moves.L = &l.mu
	l.tasks.Go(l.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		l.goOn()
		l.mu.Lock()
		for _, c := range l.conns {
			_ = c.Close()
		}
		l.mu.Unlock()
		l.tasks.Wait()
	})
	return l
}

func (l *line) url() string { return "nats://" + l.ln.Addr().String() }

func (l *line) accept() {
	for {
		a, err := l.ln.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", l.to)
		if err != nil {
			_ = a.Close()
			continue
		}
		l.mu.Lock()
		l.conns = append(l.conns, a, b)
		l.mu.Unlock()
		l.tasks.Go(func() { l.carry(a, b) })
		l.tasks.Go(func() { l.carry(b, a) })
	}
}

func (l *line) carry(from, to net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 4<<10)
	for {
		l.mu.Lock()
		for l.stopped {
			l.moves.Wait()
		}
		l.mu.Unlock()
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err = to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (l *line) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
}

func (l *line) goOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = false
	l.moves.Broadcast()
}

// cut ends all connections, and takes no more until mend.
func (l *line) cut() {
	_ = l.ln.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// cutOff cuts the line, and waits until the node knows it.
func (l *line) cutOff(t testing.TB, n *node) {
	l.cut()
	eventually(t, func() bool { return !n.Connected() })
}

func (l *line) mend(t testing.TB) {
	ln, err := net.Listen("tcp", l.ln.Addr().String())
	require.NoError(t, err)
	l.ln = ln
	l.tasks.Go(l.accept)
	t.Cleanup(func() { _ = ln.Close() })
}
