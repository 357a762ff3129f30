package stream_test

import (
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/stream"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// wire keeps what a stream says.
type wire struct {
	mu   sync.Mutex
	said []map[string]string
}

func (w *wire) SendStreamCredit(_ string, meta map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, meta)
}

func (w *wire) OtherPackets() uint32 { return 0 }

func (w *wire) take() (said []map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	said, w.said = w.said, nil
	return said
}

// pair is a stream with both its sides, and the sockets that its values go by, one way.
type pair struct {
	out, in   *stream.Stream
	outs, ins stream.Set
	fromOut   wire
	fromIn    wire
	send      *socket.Socket
	receive   *socket.Socket
	budget    *packet.Budget
}

func newPair(t testing.TB) *pair {
	p := &pair{out: new(stream.Stream), in: new(stream.Stream), budget: packet.NewBudget(100 << 20)}
	a, b := net.Pipe()
	p.send = socket.New(a, socket.Options{})
	p.receive = socket.New(b, socket.Options{Limits: packet.Limits{Budget: p.budget}})
	t.Cleanup(func() { _ = p.send.Close(); _ = p.receive.Close() })
	p.out.Init(&p.fromOut, "1", false, nil)
	p.in.Init(&p.fromIn, "1", true, p.budget)
	require.Equal(t, stream.Added, p.outs.Add(p.out, -1))
	require.Equal(t, stream.Added, p.ins.Add(p.in, -1))
	return p
}

// carry takes what each side has said to the other.
func (p *pair) carry(t testing.TB) {
	for _, meta := range p.fromOut.take() {
		require.NoError(t, p.ins.Heard([]byte("1"), meta))
	}
	for _, meta := range p.fromIn.take() {
		require.NoError(t, p.outs.Heard([]byte("1"), meta))
	}
}

// Any interleaving of sending and receiving, with values of any size: all arrive in order, the credit is
// never exceeded, what waits is bounded, and in the end nothing is held.
func TestAnyInterleavingOfValues(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		p := newPair(t)
		var sent, received []int
		largest := 1 << (4 + rnd.IntN(16))
		for range 600 {
			if rnd.IntN(3) > 0 {
				body := make([]byte, 1+rnd.IntN(largest))
				packet := &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypeValue},
					BodyCodec: "string", Body: body}
				frame, err := p.send.Encode(socket.Permit{}, nil, packet)
				require.NoError(t, err)
				if _, ok := p.out.Out.TryTake(uint64(packet.Length)); !ok {
					frame.Drop()
					p.out.Waits()
				} else {
					sent = append(sent, len(body))
					go func() { _, _ = p.send.Send(t.Context(), frame, socket.Now) }()
					var v packetView
					require.NoError(t, v.read(p))
				}
			} else if len(received) < len(sent) {
				require.NoError(t, p.in.In.Next(func(raw []byte, _ int32) error {
					received = append(received, len(raw)-1)
					return nil
				}))
			}
			if rnd.IntN(2) == 0 {
				p.carry(t)
			}
			require.Less(t, p.budget.Used(), int64(stream.MaxWindow+4<<20))
		}
		p.in.In.End(io.EOF)
		for {
			err := p.in.In.Next(func(raw []byte, _ int32) error {
				received = append(received, len(raw)-1)
				return nil
			})
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
		}
		require.Equal(t, sent, received)
		require.Zero(t, p.budget.Used())
	}
}

type packetView struct{ view packet.HeaderView }

func (v *packetView) read(p *pair) error {
	length, err := p.receive.ReadHeaderView(&v.view)
	if err != nil {
		return err
	}
	return p.in.Receive(p.receive, &v.view, length)
}

func put(t testing.TB, p *pair, n int) {
	w := &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypeValue}, BodyCodec: "string",
		Body: make([]byte, n)}
	go func() { _ = p.send.WritePacket(w) }()
	var v packetView
	require.NoError(t, v.read(p))
}

// A stream that is dropped lets go of what it has, whoever uses it at that moment.
func TestDropWhileReceiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		put(t, p, 10)
		put(t, p, 100_000)
		in, over := make(chan struct{}), make(chan error, 1)
		goOn := make(chan struct{})
		go func() {
			over <- p.in.In.Next(func([]byte, int32) error {
				close(in)
				<-goOn
				return nil
			})
		}()
		<-in
		require.Equal(t, stream.ErrBusy, p.in.In.Next(nil))
		p.in.In.Drop(io.ErrClosedPipe)
		require.NotZero(t, p.budget.Used())
		close(goOn)
		require.NoError(t, <-over)
		require.Zero(t, p.budget.Used())
		require.Equal(t, io.ErrClosedPipe, p.in.In.Next(nil))

		waiting := newPair(t)
		go func() { over <- waiting.in.In.Next(nil) }()
		synctest.Wait()
		waiting.in.In.Drop(io.ErrClosedPipe)
		require.Equal(t, io.ErrClosedPipe, <-over)
	})
}

func TestSet(t *testing.T) {
	var set stream.Set
	var w wire
	made := func(id string, answers bool) *stream.Stream {
		s := new(stream.Stream)
		s.Init(&w, id, answers, nil)
		return s
	}
	a, b := made("a", true), made("a", false)
	require.Equal(t, stream.Added, set.Add(a, 1))
	require.Equal(t, stream.Added, set.Add(b, 1))
	require.Equal(t, stream.Taken, set.Add(made("a", true), 1))
	require.Equal(t, stream.Full, set.Add(made("b", true), 1))
	require.Equal(t, 2, set.Len())
	require.Same(t, a, set.Find([]byte("a"), false))
	require.Same(t, b, set.Find([]byte("a"), true))
	set.Remove(made("a", true)) // another one with the id
	require.Equal(t, 2, set.Len())
	set.Remove(a)
	require.Nil(t, set.Find([]byte("a"), false))
	told := 0
	b.OnAway(func() { told++ })
	set.GoAway()
	set.GoAway()
	require.Equal(t, 1, told)
	c := made("c", true)
	require.Equal(t, stream.Added, set.Add(c, -1))
	c.OnAway(func() { told++ })
	require.Equal(t, 2, told)
	set.End()
	require.Equal(t, stream.Ended, set.Add(made("d", true), -1))
}

// Whatever the other side says of credit, it is taken or refused with an error, and never lets the sum of
// what may be sent go beyond what was said.
func FuzzHeard(f *testing.F) {
	for _, word := range []string{"0", "262144", "300000", "-1", "9223372036854775807", "9223372036854775808",
		"over", "waits", "", "1e9"} {
		f.Add("opener", word, "answerer", word)
	}
	f.Fuzz(func(t *testing.T, key, word, key2, word2 string) {
		var set stream.Set
		var w wire
		s := new(stream.Stream)
		s.Init(&w, "1", false, nil)
		set.Add(s, -1)
		err := set.Heard([]byte("1"), map[string]string{key: word, key2: word2})
		sent := uint64(0)
		for range 100 {
			if _, ok := s.Out.TryTake(10_000); ok {
				sent += 10_000
			}
		}
		most := uint64(stream.Window)
		for _, said := range []string{word, word2} {
			if n, e := strconv.ParseUint(said, 10, 63); e == nil && err == nil {
				most = max(most, n)
			}
		}
		if err == nil && sent > most {
			t.Fatalf("%d were sent of %d", sent, most)
		}
	})
}
