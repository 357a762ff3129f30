package stress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

var protobufCodec, _ = codec.GetByName(codec.NameProtobuf)

// goodFrames returns frames of every kind, which mutations begin with.
func goodFrames(t *testing.T) [][]byte {
	t.Helper()
	list, err := structpb.NewValue([]interface{}{"a", 1, map[string]interface{}{"b": nil}})
	require.NoError(t, err)
	var frames [][]byte
	for _, headerCodec := range []string{"protobuf", "json"} {
		for _, level := range []int32{0, 5, -2} {
			for _, h := range []packet.Header{
				{Id: "7", Type: packet.TypePull, Uri: "/echo?a=b"},
				{Id: "8", Type: packet.TypePull, Uri: "/value"},
				{Type: packet.TypePush, Uri: "/nowhere"},
				{Id: "9", Type: packet.TypeReply, StatusCode: 200, Status: "OK"},
				{Id: "10", Type: 77, Uri: "/echo"},
			} {
				for bodyCodec, body := range map[string]interface{}{
					"json":     map[string]interface{}{"text": "some text", "list": []int{1, 2, 3}},
					"protobuf": list, "string": "text", "": nil,
				} {
					h.Gzip = level
					b, err := packet.Append(nil, &packet.Packet{HeaderCodec: headerCodec,
						BodyCodec: bodyCodec, Header: &h, Body: body}, packet.Limits{})
					require.NoError(t, err)
					frames = append(frames, b)
				}
			}
		}
	}
	return frames
}

// mutate returns a frame that is wrong, most likely, in one to four places.
func mutate(r *rand.Rand, frames [][]byte) []byte {
	b := bytes.Clone(frames[r.IntN(len(frames))])
	for range 1 + r.IntN(4) {
		if len(b) == 0 {
			break
		}
		i := r.IntN(len(b))
		switch r.IntN(8) {
		case 0:
			b[i] ^= 1 << r.IntN(8)
		case 1:
			b[i] = byte(r.Uint32())
		case 2:
			b = append(b[:i], b[i+1:]...)
		case 3:
			b = append(b[:i], append([]byte{byte(r.Uint32())}, b[i:]...)...)
		case 4:
			b = b[:i]
		case 5: // a number where there may be a length
			if i+4 <= len(b) {
				numbers := []uint32{0, 1, 2, 1 << 10, 64<<10 + 1, 16 << 20, 16<<20 + 1, 1<<31 - 1, 1 << 31,
					1<<32 - 1}
				binary.BigEndian.PutUint32(b[i:], numbers[r.IntN(len(numbers))])
			}
		case 6: // a piece of it again
			j := i + r.IntN(len(b)-i)
			b = append(b[:j:j], append(bytes.Clone(b[i:j]), b[j:]...)...)
		case 7: // the end of another one
			other := frames[r.IntN(len(frames))]
			b = append(b[:i:i], other[r.IntN(len(other)):]...)
		}
	}
	return b
}

// Mutated frames are read or refused in package packet, without a panic, and the
// budget gets everything back.
func TestMutatedFramesParsed(t *testing.T) {
	frames := goodFrames(t)
	n := figure(20_000, 1_000_000)
	var good, bad atomic.Int64
	lim := packet.Limits{Budget: packet.NewBudget(256 * mib)}
	start := time.Now()
	parallel(t, runtime.GOMAXPROCS(0), n, func(i int) error {
		b := mutate(rand.New(rand.NewPCG(uint64(i), 1)), frames)
		var p packet.Packet
		bodies := []func(*packet.Header) interface{}{
			func(*packet.Header) interface{} { return new(interface{}) },
			func(*packet.Header) interface{} { return new(structpb.Value) },
			func(*packet.Header) interface{} { return new(string) },
			func(*packet.Header) interface{} { return new(packet.RawBody) },
		}
		length, err := packet.Parse(b, &p, bodies[i%len(bodies)], lim)
		if err != nil {
			bad.Add(1)
		} else {
			good.Add(1)
		}
		if length < 0 || length > len(b) || err == nil && int64(length) != p.Length+2*packet.LengthSize {
			return fmt.Errorf("length %d of %d bytes, %d in the packet: %x", length, len(b), p.Length, b)
		}
		if raw := b[min(len(b), 10):]; len(raw) > 0 {
			_, _ = packet.DecodeBody(raw, int32(i%12)-3, bodies[i%len(bodies)](nil), lim)
		}
		return nil
	})
	require.Zero(t, lim.Budget.Used())
	t.Logf("%d mutated frames in %v: %d refused, %d read", n, time.Since(start).Round(time.Millisecond),
		bad.Load(), good.Load())
}

// A peer that reads mutated frames serves its other sessions all the time, and the
// sessions that it has cut leave nothing behind.
func TestMutatedFramesToAPeer(t *testing.T) {
	const perSession = 3 // most of them are the last that is read
	frames := goodFrames(t)
	n := figure(20_000, 1_000_000)
	srv, cli := tp.NewPeer(nil), tp.NewPeer(&tp.PeerConfig{DefaultPullTimeout: patience})
	defer func() { _, _ = srv.Close(), cli.Close() }()
	s := &service{peer: srv}
	s.routes()
	near, far := pipe.New(pipe.Options{})
	_, err := srv.ServeConn(far)
	require.NoError(t, err)
	sess, err := cli.ServeConn(near)
	require.NoError(t, err)
	alive := func(i int) error {
		var got int
		if cmd := sess.Pull("/echo", i, &got); cmd.Xerror != nil || got != i {
			return fmt.Errorf("control: %d, %v", got, cmd.Xerror)
		}
		return nil
	}
	require.NoError(t, alive(1))
	start, before := time.Now(), runtime.NumGoroutine()
	var written, sessions atomic.Int64
	one := func(i int) error {
		r := rand.New(rand.NewPCG(uint64(i), 2))
		conn, far := pipe.New(pipe.Options{})
		bad, err := srv.ServeConn(conn)
		if err != nil {
			return err
		}
		read := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, far)
			close(read)
		}()
		for range perSession {
			if _, err := far.Write(mutate(r, frames)); err != nil {
				break // it was cut
			}
			written.Add(1)
		}
		sessions.Add(1)
		_ = far.Close()
		select {
		case <-bad.Done():
		case <-time.After(patience):
			return errors.New("the session has not ended")
		}
		<-read
		return alive(i)
	}
	workers := runtime.GOMAXPROCS(0)
	parallel(t, workers, workers, func(i int) error {
		for ; written.Load() < int64(n); i += workers {
			if err := one(i); err != nil {
				return err
			}
		}
		return nil
	})
	for late := time.Now(); runtime.NumGoroutine() > before+8; runtime.Gosched() {
		require.Less(t, time.Since(late), patience, "%d goroutines, before %d", runtime.NumGoroutine(),
			before)
	}
	t.Logf("%d mutated frames on %d sessions in %v; %d control pulls answered right", written.Load(),
		sessions.Load(), time.Since(start).Round(time.Millisecond), 1+sessions.Load())
}

// Whatever a connection sends first, the server serves others, ends it when it has
// ended, and is as small as before.
func TestMutatedFramesOverTCP(t *testing.T) {
	alongside(t)
	frames := goodFrames(t)
	n := figure(1000, 50_000)
	srv := start(t, options{})
	ctl := srv.control(t, options{})
	start := time.Now()
	var answered atomic.Int64
	parallel(t, 16, n, func(i int) error {
		conn, err := connect(srv.addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(mutate(rand.New(rand.NewPCG(uint64(i), 3)), frames)); err != nil {
			return err
		}
		_ = conn.(interface{ CloseWrite() error }).CloseWrite() // fails if it is cut already
		b, err := readToEnd(conn)
		if len(b) > 0 {
			answered.Add(1)
		}
		return err
	})
	t.Logf("%d connections with a mutated frame each in %v, %d of them answered", n,
		time.Since(start).Round(time.Millisecond), answered.Load())
	ctl.finish()
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, 64*mib)
}

// badBodies are bodies that cannot be understood, in packets of the level and the
// URI, and the status that each is answered with.
var badBodies = []struct {
	uri  string
	gzip int32
	body string
	code int32
}{
	{"/echo", 0, "j", 400},
	{"/echo", 0, "j{", 400},
	{"/echo", 0, `j{"a":1,}`, 400},
	{"/echo", 0, "j[1,2", 400},
	{"/echo", 0, "j\"\xff\x00", 400},
	{"/echo", 0, "jnul", 400},
	{"/echo", 0, "p\x08\x01", 400},
	{"/echo", 0, "\x00", 415},
	{"/echo", 0, "\xffabc", 415},
	{"/value", 0, "p\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 400},
	{"/value", 0, "p\x1a\x05a", 400},
	{"/echo", 5, "j", 400},
	{"/echo", 5, "jno gzip", 400},
	{"/echo", 5, "j\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", 400},
	{"/echo", 99, "j1", 400},
	{"/echo", -3, "j1", 400},
	{"/echo", 5, "j" + compress("{", 1), 400},
	{"/echo", 5, "j" + compress("", 2000), 400},
	{"/length", 5, "s" + compress(strings.Repeat("x", 80<<10), 1), 413},
	{"/length", 0, "s" + strings.Repeat("x", 70<<10), 413},
	{"/echo", 0, "j" + strings.Repeat("[", 1001) + strings.Repeat("]", 1001), 400},
	{"/echo", 0, "j" + strings.Repeat("[", 2000), 400},
	{"/nowhere", 0, "j{", 404},
	{"/a//b", 0, "j{", 400},
}

// compress returns so many gzip streams of the text.
func compress(text string, members int) string {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	for range members {
		zw.Reset(&b)
		_, _ = zw.Write([]byte(text))
		_ = zw.Close()
	}
	return b.String()
}

// A body that is bad fails its pull alone: each is answered once, with the status
// that says what was wrong, and the pulls between them on the same connection are
// answered right.
func TestBadBodies(t *testing.T) {
	alongside(t)
	const window = 64
	n := figure(5000, 100_000)
	o := options{Config: tp.PeerConfig{MaxBodyBytes: 64 << 10, MaxInflatedBytes: 64 << 10}}
	srv := start(t, o)
	ctl := srv.control(t, o)
	conn, err := connect(srv.addr)
	require.NoError(t, err)
	defer conn.Close()
	start := time.Now()
	room := make(chan struct{}, window)
	sent := make(chan error, 1)
	go func() {
		for i := range 2 * n {
			room <- struct{}{}
			h := &packet.Header{Id: fmt.Sprint(i), Type: packet.TypePull, Uri: "/echo"}
			body := fmt.Sprintf("j%d", i)
			if i%2 == 0 {
				bad := badBodies[i/2%len(badBodies)]
				h.Uri, h.Gzip, body = bad.uri, bad.gzip, bad.body
			}
			if _, err := conn.Write(rawFrame(h, []byte(body))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	answered := make([]bool, 2*n)
	in := bufio.NewReader(conn)
	for range answered {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
		h, body, err := readReply(in)
		require.NoError(t, err)
		<-room
		var i int
		_, err = fmt.Sscan(h.Id, &i)
		require.NoError(t, err)
		require.False(t, answered[i], "%d was answered twice", i)
		answered[i] = true
		if i%2 == 0 {
			bad := badBodies[i/2%len(badBodies)]
			require.Equal(t, bad.code, h.StatusCode, "%s %d %.40q: %s", bad.uri, bad.gzip, bad.body, h.Status)
			require.Empty(t, body)
		} else {
			require.Equal(t, tp.StatusOK, h.StatusCode, h.Status)
			require.Equal(t, fmt.Sprintf("j%d", i), string(body))
		}
	}
	require.NoError(t, <-sent)
	t.Logf("%d bad bodies and as many good ones on one connection in %v, each answered once and right", n,
		time.Since(start).Round(time.Millisecond))
	ctl.finish()
	require.NoError(t, conn.Close())
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, 64*mib)
}
