package stress

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/packet"
)

// patience bounds every wait, so that a failure does not hang. A machine that is busy with other
// things, under the race detector, takes its time.
const patience = 2 * time.Minute

const mib = 1 << 20

var (
	long     = flag.Bool("stress.long", false, "test with the full figures, for some minutes")
	maxFiles int
)

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		serveChild()
		return
	}
	maxFiles = raiseFiles()
	tp.SetLogLevel(tp.LevelCritical)
	flag.Parse()
	// Tests that run alongside others mostly wait, for more than there are processors.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// figure returns the number for this run.
func figure[T any](short, full T) T {
	if *long {
		return full
	}
	return short
}

// alongside lets the test run beside others, but for the full figures: much of its
// time it waits.
func alongside(t *testing.T) {
	if !*long {
		t.Parallel()
	}
}

// light returns the number for this run, where the race detector makes everything
// many times slower.
func light[T any](n, raced T) T {
	if race.Enabled {
		return raced
	}
	return n
}

// server is a server's process, with a session to ask it for its figures.
type server struct {
	addr string
	sess *tp.Session
	base stats // before the attack
}

// start starts a server, which the test's end stops. Then it must have printed
// nothing: no panic, no race.
func start(t *testing.T, o options) *server {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	env, err := json.Marshal(o)
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), serverEnv+"="+string(env))
	var printed bytes.Buffer
	cmd.Stderr = &printed
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill := time.AfterFunc(10*time.Minute, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		_ = stdin.Close()
		kill.Reset(patience)
		err := cmd.Wait()
		kill.Stop()
		text := printed.String()
		if len(text) > 10_000 {
			text = text[:10_000] + "..."
		}
		require.NoError(t, err, "the server: %s", text)
		require.Empty(t, text)
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	s := &server{addr: strings.TrimSpace(line)}
	s.sess = s.dial(t, o.client())
	for range 10 { // what is made once is there before the baseline
		s.stats(t, true)
	}
	s.base = s.stats(t, true)
	return s
}

// client makes a peer that can talk to the server.
func (o options) client() *tp.Peer {
	cfg := &tp.PeerConfig{
		TlsCertFile: o.Config.TlsCertFile, TlsKeyFile: o.Config.TlsKeyFile,
		DefaultPullTimeout: patience, MaxBodyBytes: 64 * mib, MaxInflatedBytes: 64 * mib, MaxSessions: -1,
	}
	var plugins []tp.Plugin
	if o.Hello {
		plugins = append(plugins, hello{})
	}
	return tp.NewPeer(cfg, plugins...)
}

// dial connects a new peer, which is closed at the test's end.
func (s *server) dial(t *testing.T, p *tp.Peer) *tp.Session {
	t.Helper()
	t.Cleanup(func() { _ = p.Close() })
	sess, err := p.Dial(s.addr)
	require.NoError(t, err)
	return sess
}

// stats asks the server for its figures, after a garbage collection or as it is.
func (s *server) stats(t *testing.T, gc bool) stats {
	t.Helper()
	var got stats
	cmd := s.sess.Pull("/stats", gc, &got)
	require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
	return got
}

// eventually asks the server for its figures until they are as wanted.
func (s *server) eventually(t *testing.T, what string, ok func(stats) bool) stats {
	t.Helper()
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for start := time.Now(); ; <-pace.C {
		got := s.stats(t, true)
		if ok(got) {
			return got
		}
		require.Less(t, time.Since(start), patience, "%s: before %+v, now %+v", what, s.base, got)
	}
}

// requireBaseline requires that what the attack has taken is given back. A few
// goroutines more are workers that wait for the next call.
func (s *server) requireBaseline(t *testing.T, sessions int) {
	t.Helper()
	start := time.Now()
	got := s.eventually(t, "the baseline", func(got stats) bool {
		return got.Sessions <= s.base.Sessions+sessions && got.Files <= s.base.Files+sessions &&
			got.Goroutines <= s.base.Goroutines+sessions+8
	})
	t.Logf("baseline again after %v: %d goroutines (%d before), %d files (%d), heap %.1f MiB (%.1f)",
		time.Since(start).Round(time.Millisecond), got.Goroutines, s.base.Goroutines, got.Files, s.base.Files,
		inMiB(got.Heap), inMiB(s.base.Heap))
}

func inMiB(n int64) float64 { return float64(n) / mib }

// requireGrowth requires that the server's resident memory was never more than so
// much above what it was at first.
func (s *server) requireGrowth(t *testing.T, most int64) {
	t.Helper()
	got := s.stats(t, false)
	growth := got.PeakRSS - s.base.RSS
	t.Logf("memory: resident %.1f MiB before, %.1f at most, so it grew by %.1f MiB at most",
		inMiB(s.base.RSS), inMiB(got.PeakRSS), inMiB(growth))
	if !race.Enabled {
		require.LessOrEqual(t, growth, most)
	}
}

// control pulls on a session of its own while a test attacks.
type control struct {
	t       *testing.T
	sess    *tp.Session
	end     chan struct{}
	stop    sync.Once
	over    sync.WaitGroup
	pulls   int
	wrong   []string
	longest time.Duration
}

// control starts a control client; finish must be called.
func (s *server) control(t *testing.T, o options) *control {
	t.Helper()
	c := &control{t: t, sess: s.dial(t, o.client()), end: make(chan struct{})}
	c.over.Add(1)
	go c.loop()
	t.Cleanup(c.halt)
	return c
}

func (c *control) loop() {
	defer c.over.Done()
	pace := time.NewTicker(time.Millisecond) // so that it takes no more than its share of the machine
	defer pace.Stop()
	for {
		want := fmt.Sprintf("control %d", c.pulls)
		c.pulls++
		var got string
		start := time.Now()
		if cmd := c.sess.Pull("/echo", want, &got); cmd.Xerror != nil || got != want {
			c.wrong = append(c.wrong, fmt.Sprintf("%s: %q, %v", want, got, cmd.Xerror))
		}
		c.longest = max(c.longest, time.Since(start))
		select {
		case <-c.end:
			return
		case <-pace.C:
		}
	}
}

func (c *control) halt() {
	c.stop.Do(func() { close(c.end) })
	c.over.Wait()
}

// finish requires that all pulls were answered right.
func (c *control) finish() {
	c.t.Helper()
	c.halt()
	require.Empty(c.t, c.wrong, "wrong answers to the control client, of %d", c.pulls)
	c.t.Logf("control client: %d of %d pulls answered right, the slowest after %v", c.pulls, c.pulls,
		c.longest.Round(time.Microsecond))
	require.NoError(c.t, c.sess.Close())
}

// sources counts the connections that connect has made.
var sources atomic.Int64

// connect opens a connection to address. They have several source addresses where
// the system has them, or the ports would run out.
func connect(address string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if runtime.GOOS == "linux" {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+sources.Add(1)%16))}
	}
	return d.Dial("tcp", address)
}

// hold opens so many connections, each of which use is called with, and keeps them
// open until the test ends or release is called.
func hold(t *testing.T, address string, n int, use func(i int, conn net.Conn) error) (release func()) {
	t.Helper()
	conns := make([]net.Conn, n)
	release = func() {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close()
			}
		}
	}
	t.Cleanup(release)
	parallel(t, 32, n, func(i int) error {
		conn, err := connect(address)
		if err != nil {
			return err
		}
		conns[i] = conn
		return use(i, conn)
	})
	return release
}

// parallel calls do for 0 to n-1 on so many goroutines, and requires that none
// fails.
func parallel(t *testing.T, workers, n int, do func(i int) error) {
	t.Helper()
	var next atomic.Int64
	errs := make(chan error, workers)
	for range workers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					errs <- nil
					return
				}
				if err := do(i); err != nil {
					errs <- fmt.Errorf("%d: %w", i, err)
					return
				}
			}
		}()
	}
	var first error
	for range workers {
		if err := <-errs; first == nil {
			first = err
		}
	}
	require.NoError(t, first)
}

// readToEnd returns what the other side sends until it ends the connection, and an
// error if it does not.
func readToEnd(conn net.Conn) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(conn)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return b, fmt.Errorf("the connection was not closed: %w", err)
	}
	return b, nil // a reset is an end too
}

// rawFrame makes a frame of the parts as they are, whatever they say. The header
// codec is protobuf.
func rawFrame(h *packet.Header, body []byte) []byte {
	var b []byte
	b = appendHeader(b, h)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// appendHeader appends the part of a frame before the body's length.
func appendHeader(b []byte, h *packet.Header) []byte {
	header, err := packet.AppendHeader(nil, protobufCodec, h)
	if err != nil {
		panic(err)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(header)))
	b = append(b, protobufCodec.Id())
	return append(b, header...)
}

// readReply reads a frame and returns its header and its body.
func readReply(r io.Reader) (*packet.Header, packet.RawBody, error) {
	var p packet.Packet
	var length [packet.LengthSize]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, nil, err
	}
	if err := p.ParseHeader(b); err != nil {
		return nil, nil, err
	}
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, nil, err
	}
	b = make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(r, b)
	return p.Header, b, err
}

func pushPacket(uri string, body interface{}) *packet.Packet {
	return &packet.Packet{Header: &packet.Header{Type: packet.TypePush, Uri: uri}, BodyCodec: "string",
		Body: body}
}
