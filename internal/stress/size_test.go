package stress

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// budget is the default of PeerConfig.MaxBufferedBytes.
const budget = 256 * mib

// What a connection declares takes no memory before it comes: a header of 4 GiB
// ends the connection, a body of 4 GiB is answered with 413, and one of 4 MiB, of
// which a byte comes, is waited for.
func TestDeclaredSizes(t *testing.T) {
	alongside(t)
	n := figure(200, 1000)
	good := rawFrame(&packet.Header{Id: "good", Type: packet.TypePull, Uri: "/echo"}, []byte("j1"))
	declare := func(length uint32) []byte {
		b := appendHeader(nil, &packet.Header{Id: "declared", Type: packet.TypePull, Uri: "/echo"})
		return append(binary.BigEndian.AppendUint32(b, length), 'j')
	}
	srv := start(t, options{})
	ctl := srv.control(t, options{})
	for _, c := range []struct {
		name  string
		bytes []byte
		codes map[string]int32 // of the replies, by their ids
	}{
		{"header of 4 GiB", append([]byte{0xff, 0xff, 0xff, 0xff}, 'p'), nil},
		// The good pull's reply shows that the server has read what came with it.
		{"body of 4 GiB", append(bytes.Clone(good), declare(1<<32-1)...), map[string]int32{"good": 200,
			"declared": 413}},
		{"body of 4 MiB", append(bytes.Clone(good), declare(4*mib)...), map[string]int32{"good": 200}},
	} {
		begin := time.Now()
		release := hold(t, srv.addr, n, func(_ int, conn net.Conn) error {
			if _, err := conn.Write(c.bytes); err != nil {
				return err
			}
			if c.codes == nil {
				b, err := readToEnd(conn)
				if len(b) > 0 {
					return fmt.Errorf("answered with %q", b)
				}
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
			for range c.codes {
				h, _, err := readReply(conn)
				if err != nil {
					return err
				}
				if code := c.codes[h.Id]; code != h.StatusCode {
					return fmt.Errorf("%s: %d %s instead of %d", h.Id, h.StatusCode, h.Status, code)
				}
			}
			return nil
		})
		held := srv.stats(t, false)
		t.Logf("%s: %d connections in %v, %d of them held: heap %.1f MiB", c.name, n,
			time.Since(begin).Round(time.Millisecond), held.Sessions-2, inMiB(held.Heap))
		if c.codes != nil {
			require.Equal(t, n+2, held.Sessions)
		}
		srv.requireGrowth(t, 64*mib)
		release()
	}
	ctl.finish()
	srv.requireBaseline(t, 0)
}

// attack pulls the body as it stands, so many times at once on as many sessions, and
// requires that each is answered with one of the statuses and that the session
// answers the next pull. It returns how many there were of each.
func attack(t *testing.T, srv *server, uri string, body packet.RawBody, at int, codes []int32,
	settings ...tp.PacketSetting) map[int32]int {
	t.Helper()
	cli := options{}.client()
	defer cli.Close()
	sessions := make([]*tp.Session, at)
	for i := range sessions {
		sess, err := cli.Dial(srv.addr)
		require.NoError(t, err)
		sessions[i] = sess
	}
	var mu sync.Mutex
	seen := map[int32]int{}
	parallel(t, at, at, func(i int) error {
		code := tp.StatusOK
		if cmd := sessions[i].Pull(uri, body, nil, settings...); cmd.Xerror != nil {
			code = cmd.Xerror.Code()
		}
		mu.Lock()
		seen[code]++
		mu.Unlock()
		var got int
		if cmd := sessions[i].Pull("/echo", i, &got); cmd.Xerror != nil || got != i {
			return fmt.Errorf("the session is not alive: %d, %v", got, cmd.Xerror)
		}
		return nil
	})
	for code := range seen {
		require.Contains(t, codes, code)
	}
	return seen
}

// Bodies that inflate to a thousand times their size, where that is over the limit,
// are refused and cost no more than the budget.
func TestGzipBombs(t *testing.T) {
	alongside(t)
	inflate(t, []int{figure(64*mib, 1<<30), 17 * mib}, []int32{413, 429}, budget+64*mib)
}

// Those that are just within the limit are served as far as the budget goes. What
// they are decoded into is the handler's, and not of the budget, and there may be as
// much garbage as there is memory in use.
func TestGzipBodiesWithinTheLimit(t *testing.T) {
	alongside(t)
	inflate(t, []int{16*mib - 1}, []int32{200, 429}, 4*budget+64*mib)
}

// inflate lets a server inflate bodies of these sizes, many at once.
func inflate(t *testing.T, sizes []int, codes []int32, growth int64) {
	at := light(64, 4)
	srv := start(t, options{})
	ctl := srv.control(t, options{})
	for _, size := range sizes {
		bomb := packet.RawBody("s" + compressZeros(t, size))
		ratio := size / len(bomb)
		require.Greater(t, ratio, 1000)
		begin := time.Now()
		seen := attack(t, srv, "/length", bomb, at, codes, tp.WithGzip(9))
		peak := srv.stats(t, false).PeakRSS
		t.Logf("%d bodies at once of %d bytes for %d (%d:1) in %v, answered with %v; resident at most %.1f "+
			"MiB so far",
			at, len(bomb), size, ratio, time.Since(begin).Round(time.Millisecond), seen, inMiB(peak))
	}
	ctl.finish()
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, growth)
}

func compressZeros(t *testing.T, n int) string {
	t.Helper()
	var b strings.Builder
	zw, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	require.NoError(t, err)
	_, err = io.CopyN(zw, zeros{}, int64(n))
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	return b.String()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A body of very many gzip streams of nothing is refused, and costs neither memory
// nor much time.
func TestEmptyGzipMembers(t *testing.T) {
	alongside(t)
	const member = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	members := figure(100_000, 1_000_000)
	body := packet.RawBody("j" + strings.Repeat(member, members))
	srv := start(t, options{Config: tp.PeerConfig{MaxBodyBytes: 32 * mib}})
	ctl := srv.control(t, options{})
	begin := time.Now()
	seen := attack(t, srv, "/echo", body, 4, []int32{400}, tp.WithGzip(9))
	t.Logf("4 bodies of %d streams, %.1f MiB each, in %v, answered with %v", members, inMiB(int64(len(body))),
		time.Since(begin).Round(time.Millisecond), seen)
	ctl.finish()
	srv.requireGrowth(t, budget+64*mib)
	srv.requireBaseline(t, 0)
}

// Bodies that are nested very deep are refused before anything of theirs is decoded
// recursively.
func TestDeepBodies(t *testing.T) {
	alongside(t)
	deepJSON, deepProto := figure(100_000, 1_000_000), figure(20_000, 100_000)
	srv := start(t, options{})
	ctl := srv.control(t, options{})
	for _, c := range []struct {
		name, uri, body string
		code            int32
	}{
		{"arrays", "/echo", "j" + strings.Repeat("[", deepJSON) + strings.Repeat("]", deepJSON), 400},
		{"open arrays", "/echo", "j" + strings.Repeat("[", deepJSON), 400},
		{"objects", "/echo", "j" + strings.Repeat(`{"a":`, deepJSON) + "1" + strings.Repeat("}", deepJSON),
			400},
		{"protobuf", "/value", "p" + deepValue(deepProto), 400},
		{"protobuf, 200 deep", "/value", "p" + deepValue(100), 200}, // it is made right
	} {
		begin := time.Now()
		seen := attack(t, srv, c.uri, packet.RawBody(c.body), 16, []int32{c.code})
		t.Logf("%s: 16 bodies of %.1f MiB at once in %v, answered with %v", c.name, inMiB(int64(len(c.body))),
			time.Since(begin).Round(time.Millisecond), seen)
	}
	ctl.finish()
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, budget+64*mib)
}

// deepValue returns the protobuf encoding of so many lists inside each other, as
// google.protobuf.Value. It is written from its end to its beginning.
func deepValue(depth int) string {
	b := make([]byte, 16*depth)
	at := len(b)
	wrap := func(tag byte) {
		var length [binary.MaxVarintLen64]byte
		n := binary.PutUvarint(length[:], uint64(len(b)-at))
		at -= n
		copy(b[at:], length[:n])
		at--
		b[at] = tag
	}
	for range depth {
		wrap(1<<3 | 2) // ListValue.values
		wrap(6<<3 | 2) // Value.list_value
	}
	return string(b[at:])
}
