package stress

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// The tests of this file attack a server as a stranger can, with its default limits, while
// good clients go on: one on a session that it has had before, one that dials anew each
// time. Theirs are the figures of docs/reliability.md: none of their calls may fail.

// good is two good clients.
type good struct {
	t     *testing.T
	end   chan struct{}
	stop  sync.Once
	over  sync.WaitGroup
	mu    sync.Mutex // guards the fields below
	times []time.Duration
	dials []time.Duration
	wrong []string
}

// good starts the clients, whose source is 127.0.0.1; the attackers are elsewhere.
func (s *server) good(t *testing.T, o options) *good {
	t.Helper()
	g := &good{t: t, end: make(chan struct{})}
	sess := s.dial(t, o.client())
	text := strings.Repeat("good ", 2000)
	pull := func(sess *tp.Session) error {
		var got string
		if x := sess.Pull("/echo", text, &got).Xerror; x != nil {
			return x
		}
		if got != text {
			return fmt.Errorf("a wrong answer of %d bytes", len(got))
		}
		return nil
	}
	dialler := o.client()
	t.Cleanup(func() { _ = dialler.Close() })
	g.run(2*time.Millisecond, &g.times, func() error { return pull(sess) })
	g.run(20*time.Millisecond, &g.dials, func() error {
		sess, err := dialler.Dial(s.addr)
		if err != nil {
			return err
		}
		defer sess.Close()
		return pull(sess)
	})
	t.Cleanup(g.halt)
	return g
}

func (g *good) run(pace time.Duration, times *[]time.Duration, call func() error) {
	g.over.Add(1)
	go func() {
		defer g.over.Done()
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			began := time.Now()
			err := call()
			took := time.Since(began)
			g.mu.Lock()
			if *times = append(*times, took); err != nil {
				g.wrong = append(g.wrong, err.Error())
			}
			g.mu.Unlock()
			select {
			case <-g.end:
				return
			case <-tick.C:
			}
		}
	}()
}

func (g *good) halt() {
	g.stop.Do(func() { close(g.end) })
	g.over.Wait()
}

// finish requires that no call has failed, and logs a line of the table.
func (g *good) finish(s *server, attack string) {
	g.t.Helper()
	g.halt()
	at := func(times []time.Duration, part float64) time.Duration {
		if len(times) == 0 {
			return 0
		}
		slices.Sort(times)
		return times[min(int(part*float64(len(times))), len(times)-1)].Round(10 * time.Microsecond)
	}
	st := s.stats(g.t, false)
	g.t.Logf("heap %.1f MiB after a collection, %.1f before", inMiB(s.stats(g.t, true).Heap), inMiB(st.Heap))
	g.t.Logf("| %s | %d of %d | %v, %v | %v, %v | %.0f MiB |", attack, len(g.wrong),
		len(g.times)+len(g.dials),
		at(g.times, .5), at(g.times, .99), at(g.dials, .5), at(g.dials, .99), inMiB(st.PeakRSS-s.base.RSS))
	require.Empty(g.t, g.wrong[:min(len(g.wrong), 5)], "failures of good clients: %d", len(g.wrong))
}

// during repeats an attack for a while on so many goroutines.
func during(t *testing.T, workers int, attack func(n int)) {
	until := time.Now().Add(figure(time.Second, 10*time.Second))
	var wg sync.WaitGroup
	var n atomic.Int64
	for range workers {
		wg.Go(func() {
			for time.Now().Before(until) {
				attack(int(n.Add(1)))
			}
		})
	}
	wg.Wait()
}

// attacker is a connection that sends what it likes.
func attacker(s *server) net.Conn {
	conn, err := connect(s.addr)
	if err != nil {
		return nil
	}
	return conn
}

// send writes for a second at most, and reports whether all was taken.
func send(conn net.Conn, b []byte) bool {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := conn.Write(b)
	return err == nil
}

func pullFrame(id, uri string, level int32, body []byte) []byte {
	return rawFrame(&packet.Header{Id: id, Type: packet.TypePull, Uri: uri, Gzip: level}, body)
}

// bomb is the JSON text, compressed, as a body.
func bomb(t *testing.T, text string) []byte {
	var b bytes.Buffer
	b.WriteByte('j')
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	require.NoError(t, err)
	_, err = w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// Small bodies that are decoded into much memory.
func TestAttackDecoded(t *testing.T) {
	srv := start(t, options{})
	rows := pullFrame("1", "/rows", 9, bomb(t, "[{}"+strings.Repeat(",{}", 4_000_000)+"]"))
	maps := pullFrame("1", "/echo", 0, []byte("j[1"+strings.Repeat(`,{"":1}`, 300_000)+"]"))
	g := srv.good(t, options{})
	during(t, 8, func(n int) {
		conn := attacker(srv)
		if conn == nil {
			return
		}
		defer conn.Close()
		if send(conn, [][]byte{rows, maps}[n%2]) {
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			_, _, _ = readReply(conn)
		}
	})
	g.finish(srv, "8 at once send 16 KB of gzip that would be 1 GB in a slice, or 2 MB of small objects")
	srv.requireGrowth(t, light[int64](600, 1500)*mib)
}

// Connections that send and do not read.
func TestAttackSlowReaders(t *testing.T) {
	echo := pullFrame("1", "/echo", 0, []byte(`j"`+strings.Repeat("x", 60_000)+`"`))
	length := pullFrame("1", "/length", 0, append([]byte("s"), make([]byte, 60_000)...))
	large := pullFrame("1", "/large", 0, []byte("j200000"))
	parts := rawFrame(&packet.Header{Id: "credit", Type: packet.TypeCredit, Meta: map[string]string{
		"pulls": "none", "streams": "none", "parts": "yes"}}, nil)
	for _, c := range []struct {
		name    string
		readers int
		frame   []byte
		n       int
		parts   bool // say that large replies may come in parts
		reads   bool // and read them, without a word
	}{
		{"20 send 400 pulls of 60 KB to an echo, and read nothing", 20, echo, 400, false, false},
		{"400 do", figure(0, 400), echo, 400, false, false},
		{"20 send 400 pulls of 60 KB with small replies, and read nothing", 20, length, 400, false, false},
		{"one sends 3.1 MB of small pulls with replies of 200 KB, and reads nothing", 1, large, 100_000,
			false, false},
		{"20 do", 20, large, 5_000, false, false},
		{"20 do, and know parts", 20, large, 5_000, true, false},
		{"20 do, and read the parts, and never say that they have come", 20, large, 5_000, true, true},
	} {
		if c.readers == 0 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			srv := start(t, options{})
			g := srv.good(t, options{})
			hold(t, srv.addr, c.readers, func(_ int, conn net.Conn) error {
				if c.parts {
					send(conn, parts)
				}
				if c.reads {
					go func() { _, _ = readToEnd(conn) }()
				}
				for i := 0; i < c.n && send(conn, c.frame); i++ {
				}
				return nil
			})
			g.finish(srv, c.name)
			// Beside other programs more handlers have begun before the first has replied, and each has a
			// reply of its own in hand: 130 to 530 MiB in eight runs. Without a bound it would be 20 GB.
			srv.requireGrowth(t, int64(1000+c.readers/2)*mib)
		})
	}
}

// Strangers who have begun to send, before and after the handshake.
func TestAttackHalfSent(t *testing.T) {
	for _, o := range []options{{}, {Hello: true}} {
		t.Run(fmt.Sprintf("hello=%v", o.Hello), func(t *testing.T) {
			srv := start(t, o)
			g := srv.good(t, o)
			frame := pullFrame("1", "/echo", 0, make([]byte, 15*mib))
			hold(t, srv.addr, figure(60, 400), func(i int, conn net.Conn) error {
				part := 6 << 10
				if i%3 == 0 {
					part = 15 * mib
				}
				send(conn, frame[:part])
				return nil
			})
			during(t, 1, func(int) { time.Sleep(10 * time.Millisecond) })
			g.finish(srv, fmt.Sprintf("%d strangers with 6 KB, or 15 MiB, of a body that does not end, %s",
				figure(60, 400), map[bool]string{false: "after the handshake", true: "in it"}[o.Hello]))
			srv.requireGrowth(t, 500*mib)
		})
	}
}

// Connections that say nothing, many times more than there are places for.
func TestAttackSilent(t *testing.T) {
	o := options{Hello: true}
	srv := start(t, o)
	g := srv.good(t, o)
	n := min(figure(1500, 10_000), maxFiles/2)
	hold(t, srv.addr, n, func(int, net.Conn) error { return nil })
	g.finish(srv, fmt.Sprintf("%d connections, one after the other, that say nothing in the handshake", n))
	srv.requireGrowth(t, 150*mib)
}

// Pulls that wait for ever, bare, and with as much header as there may be.
func TestAttackWaiting(t *testing.T) {
	sessions, pulls := figure(6, 16), light(6000, 600)
	for name, uri := range map[string]string{"bare": "/wait", "with 60 KB of header each": "/wait?" +
		strings.Repeat("x", 60_000)} {
		t.Run(name, func(t *testing.T) {
			srv := start(t, options{})
			g := srv.good(t, options{})
			hold(t, srv.addr, sessions, func(_ int, conn net.Conn) error {
				go func() { _, _ = readToEnd(conn) }()
				frame := pullFrame("1", uri, 0, []byte("j1"))
				for i := 0; i < pulls && send(conn, frame); i++ {
				}
				return nil
			})
			g.finish(srv, fmt.Sprintf("%d sessions with %d pulls each of a handler that waits, %s", sessions,
				pulls, name))
			srv.requireGrowth(t, light[int64](500, 1000)*mib)
		})
	}
}

// Streams that nobody receives from, as many as may be open, with as much sent on each as may be.
func TestAttackStreams(t *testing.T) {
	sessions, streams := figure(6, 16), light(6000, 600)
	for name, size := range map[string]int{"empty": 0, "full": 60_000} {
		t.Run(name, func(t *testing.T) {
			srv := start(t, options{})
			g := srv.good(t, options{})
			hold(t, srv.addr, sessions, func(_ int, conn net.Conn) error {
				go func() { _, _ = readToEnd(conn) }()
				value := append([]byte("s"), make([]byte, size)...)
				for i := range streams {
					id := fmt.Sprint(i)
					if !send(conn, rawFrame(&packet.Header{Id: id, Type: packet.TypeOpen, Uri: "/stuck"},
						[]byte("s"))) {
						break
					}
					for range 4 {
						if size > 0 && !send(conn, rawFrame(&packet.Header{Id: id, Type: packet.TypeValue},
							value)) {
							break
						}
					}
				}
				return nil
			})
			g.finish(srv, fmt.Sprintf("%d sessions with %d streams each that nobody receives from, %s",
				sessions, streams, name))
			srv.requireGrowth(t, light[int64](500, 1000)*mib)
		})
	}
}

// Packets in parts that do not go on, as many as may be under way: bare, with as much header as there may be,
// and with a part of a body that does not end.
func TestAttackParts(t *testing.T) {
	for name, c := range map[string]struct {
		uri  string
		body int
	}{
		"begun":                     {"/echo", 0},
		"with 60 KB of header":      {"/echo?" + strings.Repeat("x", 60_000), 0},
		"with 250 KB of their body": {"/echo", 250_000},
	} {
		t.Run(name, func(t *testing.T) {
			srv := start(t, options{})
			g := srv.good(t, options{})
			frame := pullFrame("1", c.uri, 0, make([]byte, 15*mib))
			first := frame[:len(frame)-15*mib+c.body]
			hold(t, srv.addr, figure(60, 400), func(_ int, conn net.Conn) error {
				go func() { _, _ = readToEnd(conn) }()
				for i := range 64 {
					h := &packet.Header{Id: fmt.Sprint(i), Type: packet.TypePart}
					if !send(conn, rawFrame(h, first)) {
						break
					}
				}
				return nil
			})
			during(t, 1, func(int) { time.Sleep(10 * time.Millisecond) })
			g.finish(srv, fmt.Sprintf("%d strangers with 64 packets in parts each, %s", figure(60, 400),
				name))
			srv.requireGrowth(t, 500*mib)
		})
	}
}

// Packets that cost the server as much of its processor as possible.
func TestAttackProcessor(t *testing.T) {
	srv := start(t, options{})
	meta := make(map[string]string)
	for i := range 256 {
		meta[fmt.Sprint("key", i)] = "value"
	}
	frames := map[string][]byte{
		"deep":  pullFrame("1", "/echo", 0, []byte("j"+strings.Repeat("[", 500_000))),
		"bombs": pullFrame("1", "/length", 9, bomb(t, strings.Repeat(" ", light(15, 2)*mib))),
		"metadata": rawFrame(&packet.Header{Id: "1", Type: packet.TypePull, Uri: "/nowhere", Meta: meta},
			nil),
		"tiny":    bytes.Repeat(pullFrame("", "/nowhere", 0, nil), 1000),
		"unknown": bytes.Repeat(rawFrame(&packet.Header{Id: "1", Type: 99}, nil), 1000),
	}
	for _, name := range []string{"deep", "bombs", "metadata", "tiny", "unknown"} {
		t.Run(name, func(t *testing.T) {
			g := srv.good(t, options{})
			hold(t, srv.addr, 4, func(_ int, conn net.Conn) error {
				go func() { _, _ = readToEnd(conn) }()
				until := time.Now().Add(figure(300*time.Millisecond, 5*time.Second))
				for time.Now().Before(until) && send(conn, frames[name]) {
				}
				return nil
			})
			g.finish(srv, "4 connections at full speed: "+name)
		})
	}
}
