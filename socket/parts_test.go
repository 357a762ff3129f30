package socket_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// hears reads what the other side says to a socket that only sends.
func hears(s *socket.Socket) {
	go func() {
		for {
			if _, _, err := receive(s); err != nil {
				return
			}
		}
	}()
}

// post sends a message, and does not wait.
func post(t testing.TB, s *socket.Socket, id, body string) {
	t.Helper()
	require.NoError(t, sendFrame(s, encode(t, s, message(id, body)), socket.Later))
}

// part returns a part as it stands on the wire.
func part(t testing.TB, id string, b []byte) []byte {
	head := frame(t, &packet.Packet{Header: &packet.Header{Type: packet.TypePart, Id: id}})
	head = binary.BigEndian.AppendUint32(head[:len(head)-packet.LengthSize], uint32(len(b)))
	return append(head, b...)
}

// A small packet passes a large one, but not in its lane.
func TestSmallPacketsPassLargeOnes(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			a.CutLarge()
			hears(a)
			large := strings.Repeat("0123456789", 200_000)
			var lane socket.Lane
			require.NoError(t, sendFrame(a, encode(t, a, message("large", large)).In(&lane), socket.Queue))
			require.NoError(t, sendFrame(a, encode(t, a, message("behind", "x")).In(&lane), socket.Queue))
			require.NoError(t, sendFrame(a, encode(t, a, message("last", "x")).Behind(), socket.Control))
			post(t, a, "small", "y")
			requireMessage(t, b, "small", "y")
			requireMessage(t, b, "large", large)
			requireMessage(t, b, "behind", "x")
			requireMessage(t, b, "last", "x")
			require.NoError(t, sendFrame(a, encode(t, a, message("again", "x")).In(&lane), socket.Later))
			requireMessage(t, b, "again", "x")
			require.True(t, a.CloseWrite(10*time.Second))
			requireOver(t, b)
		})
	}
}

// However many packets of whatever size are sent at a time, all of them come, as they are, and each lane in
// order. The memory of both sides is given back.
func TestManyPacketsInParts(t *testing.T) {
	in, out := packet.NewBudget(100<<20), packet.NewBudget(100<<20)
	ca, cb := overTCP(t)
	a := socket.New(ca, socket.Options{MaxOutput: 1 << 20, Output: out})
	b := socket.New(cb, socket.Options{Limits: packet.Limits{Budget: in}})
	a.CutLarge()
	hears(a)
	const senders, packets = 30, 20
	modes := []socket.Mode{socket.Now, socket.Later, socket.Try}
	text := strings.Repeat("0123456789abcdefg", 40_000)
	sizeOf := func(sender, n int) int {
		r := rand.New(rand.NewPCG(uint64(sender), uint64(n)))
		if r.IntN(3) == 0 {
			return r.IntN(100)
		}
		return r.IntN(len(text))
	}
	var wg sync.WaitGroup
	for sender := range senders {
		wg.Go(func() {
			var lane socket.Lane
			for n := range packets {
				p := message(fmt.Sprintf("%d.%d", sender, n), text[:sizeOf(sender, n)])
				permit, err := a.Permit(context.Background())
				if err == nil {
					var f socket.Frame
					if f, err = a.Encode(permit, nil, p); err == nil {
						err = sendFrame(a, f.In(&lane), modes[n%len(modes)])
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	next := make(map[int]int)
	for range senders * packets {
		id, body, err := receive(b)
		require.NoError(t, err)
		var sender, n int
		_, err = fmt.Sscanf(id, "%d.%d", &sender, &n)
		require.NoError(t, err)
		require.Equal(t, next[sender], n, "sender %d", sender)
		next[sender]++
		require.True(t, text[:sizeOf(sender, n)] == body, "%s: body of %d bytes", id, len(body))
	}
	wg.Wait()
	require.Zero(t, in.Used())
	require.True(t, a.CloseWrite(10*time.Second))
	require.Zero(t, out.Used())
}

// However many small packets there are, large ones get their part of the connection.
func TestSmallPacketsDoNotStarveLargeOnes(t *testing.T) {
	ca, cb := overTCP(t)
	a, b := socket.New(ca, socket.Options{MaxOutput: 1 << 20}), socket.New(cb, socket.Options{})
	a.CutLarge()
	hears(a)
	const large, small = 12 << 20, 40 << 10
	var over atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			text := strings.Repeat("x", small)
			for !over.Load() {
				if err := a.WritePacket(message("small", text)); err != nil {
					return
				}
			}
		})
	}
	post(t, a, "large", strings.Repeat("y", large))
	before := 0
	for {
		id, _, err := receive(b)
		require.NoError(t, err)
		if id == "large" {
			break
		}
		before += small
	}
	require.Less(t, before, 12*large)
	over.Store(true)
	require.NoError(t, b.Close())
	require.NoError(t, a.Close())
	wg.Wait()
}

// A packet that is recalled does not come, and what has come of it takes no memory any more.
func TestRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := packet.NewBudget(100<<20), packet.NewBudget(100<<20)
		ca, cb := pipe.New(pipe.Options{Buffer: 100_000})
		a := socket.New(ca, socket.Options{Output: out})
		b := socket.New(cb, socket.Options{Limits: packet.Limits{Budget: in}})
		a.CutLarge()
		hears(a)
		large := strings.Repeat("0123456789", 200_000)
		for tag := range uint64(3) {
			f := encode(t, a, message(strconv.Itoa(int(tag+1)), large)).Tagged(tag + 1)
			require.NoError(t, sendFrame(a, f, socket.Later))
		}
		synctest.Wait() // the first is being written
		require.True(t, a.Recall(1))
		require.True(t, a.Recall(3))
		require.False(t, a.Recall(3))
		require.False(t, a.Recall(0))
		require.False(t, a.Recall(7))
		requireMessage(t, b, "2", large)
		require.False(t, a.Recall(2))
		post(t, a, "4", "small")
		requireMessage(t, b, "4", "small")
		require.Zero(t, in.Used())
		require.Zero(t, out.Used())
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// A packet whose last part is being written comes, whatever was wanted.
func TestRecallTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{Buffer: 10_000})
		a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
		a.CutLarge()
		hears(a)
		text := strings.Repeat("x", 70_000)
		require.NoError(t, sendFrame(a, encode(t, a, message("1", text)).Tagged(1), socket.Later))
		synctest.Wait()
		require.False(t, a.Recall(1))
		requireMessage(t, b, "1", text)
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// What makes no sense ends the connection, with an error that says what was wrong.
func TestPartsThatMakeNoSense(t *testing.T) {
	whole := frame(t, message("1", strings.Repeat("x", 100)))
	first := part(t, "1", whole[:40])
	for _, c := range []struct{ name, says string }{
		{"id", `a part has the id "x", expected a decimal number`},
		{"negative id", `a part has the id "-1", expected a decimal number`},
		{"short", "the first part of a packet has 3 bytes, expected its whole header"},
		{"no header", "the first part of a packet has 8 bytes, expected its whole header"},
		{"bad header", "bad header"},
		{"too much", "parts of a packet have 121 bytes of its body, which has 101"},
		{"part of a part", "a packet of type 12 with a body of 1 bytes comes in parts"},
		{"no body", "a packet of type 3 with a body of 0 bytes comes in parts"},
		{"large", "a part of 5000000 bytes, expected 4194304 at most"},
		{"many", "64 packets come in parts, which is as many as may"},
		{"answer", `a part without an id has the body "many", expected a decimal number`},
		{"long answer", "a part without an id has 21 bytes, expected a decimal number"},
		{"answer to nothing", "the other side says that parts have come, and none were sent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stream []byte
			switch c.name {
			case "id":
				stream = part(t, "x", whole)
			case "negative id":
				stream = part(t, "-1", whole)
			case "short":
				stream = part(t, "1", whole[:3])
			case "no header":
				stream = part(t, "1", whole[:8])
			case "bad header":
				stream = part(t, "1", []byte("\x00\x00\x00\x02pp\x00\x00\x00\x01"))
			case "too much":
				stream = append(first, part(t, "1", make([]byte, 121-(40-len(whole)+101)))...)
			case "part of a part":
				stream = part(t, "1", part(t, "1", []byte{1}))
			case "no body":
				stream = part(t, "1", frame(t, &packet.Packet{Header: &packet.Header{Type: packet.TypePush}}))
			case "large":
				stream = part(t, "1", make([]byte, 5_000_000))
			case "many":
				for n := range 65 {
					stream = append(stream, part(t, strconv.Itoa(n), whole[:40])...)
				}
			case "answer":
				stream = part(t, "", []byte("many"))
			case "long answer":
				stream = part(t, "", []byte(strings.Repeat("1", 21)))
			case "answer to nothing":
				stream = part(t, "", []byte("1"))
			}
			budget := packet.NewBudget(1 << 20)
			ca, cb := pipe.New(pipe.Options{Buffer: len(stream)})
			send(t, ca, stream)
			_, _, err := receive(socket.New(cb, socket.Options{Limits: packet.Limits{Budget: budget}}))
			require.ErrorContains(t, err, c.says)
			require.True(t, socket.Fatal(err))
			require.Zero(t, budget.Used())
			ca.Close()
			cb.Close()
		})
	}
}

// A side that says that more has come than was sent is cut off; to say the same twice, or less, does no harm.
func TestWhatHasComeIsNoMoreThanWasSent(t *testing.T) {
	ca, cb := overTCP(t)
	a := socket.New(ca, socket.Options{})
	a.CutLarge()
	post(t, a, "1", strings.Repeat("x", 100_000))
	read := make(chan error, 1)
	go func() { _, _, err := receive(a); read <- err }()
	_, err := io.CopyN(io.Discard, cb, 66_000)
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, cb) }()
	for _, said := range []string{"65536", "65536", "1", "100000000"} {
		_, err := cb.Write(part(t, "", []byte(said)))
		require.NoError(t, err)
	}
	err = <-read
	require.ErrorContains(t, err, "the other side says that 100000000 bytes of parts have come, and ")
	require.True(t, socket.Fatal(err))
}

// A body that is too large, or for which there is no memory, is passed over, and the others come.
func TestPartsOfARefusedBody(t *testing.T) {
	for name, limits := range map[string]packet.Limits{
		"too large": {Body: 100_000},
		"no memory": {Budget: packet.NewBudget(150_000)},
	} {
		t.Run(name, func(t *testing.T) {
			ca, cb := overTCP(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{Limits: limits})
			a.CutLarge()
			hears(a)
			post(t, a, "1", strings.Repeat("x", 3_000_000))
			p, err := receivePacket(b, new(string))
			require.False(t, socket.Fatal(err))
			if name == "too large" {
				require.ErrorIs(t, err, packet.ErrTooLarge)
			} else {
				require.ErrorIs(t, err, packet.ErrBudget)
			}
			require.Equal(t, "1", p.Header.Id)
			post(t, a, "2", strings.Repeat("x", 90_000))
			requireMessage(t, b, "2", strings.Repeat("x", 90_000))
			require.Zero(t, limits.Budget.Used())
		})
	}
}

// A side that never says what has come ends the connection of the one that sends, as one does that does not
// read. One that was only slow does not.
func TestPartsThatNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{})
		a := socket.New(ca, socket.Options{WriteTimeout: time.Second})
		a.CutLarge()
		read := make(chan error, 1)
		go func() { _, _, err := receive(a); read <- err }()
		go func() { _, _ = io.Copy(io.Discard, cb) }()
		// All of it is sent, so nothing waits for an answer.
		post(t, a, "1", strings.Repeat("x", 100_000))
		time.Sleep(5 * time.Second)
		require.Empty(t, read)
		post(t, a, "2", strings.Repeat("x", 1_000_000))
		start := time.Now()
		err := <-read
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.WithinDuration(t, start.Add(time.Second), time.Now(), time.Second)
		f := encode(t, a, message("3", "x"))
		requireWriteError(t, sendFrame(a, f, socket.Later), os.ErrDeadlineExceeded)
		a.Close()
		cb.Close()
	})
}

// A packet in parts that does not go on ends the connection, although other packets come.
func TestPartsThatDoNotGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{})
		budget := packet.NewBudget(1 << 20)
		b := socket.New(cb, socket.Options{FrameTimeout: 15 * time.Second,
			Limits: packet.Limits{Budget: budget}})
		send(t, ca, part(t, "1", frame(t, message("1", strings.Repeat("x", 100)))[:40]))
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					send(t, ca, frame(t, message("2", "x")))
				}
			}
		}()
		start := time.Now()
		for {
			if _, _, err := receive(b); err != nil {
				require.ErrorContains(t, err, "bytes have come, and no more for 1m0s")
				require.True(t, socket.Fatal(err))
				break
			}
			require.Less(t, time.Since(start), 70*time.Second)
		}
		require.Greater(t, time.Since(start), 50*time.Second)
		require.Zero(t, budget.Used())
		close(stop)
		synctest.Wait()
		ca.Close()
		b.Close()
	})
}

// When nothing more comes either, the time for a packet ends the connection.
func TestPartsOfWhoIsGone(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			b := socket.New(cb, socket.Options{FrameTimeout: 50 * time.Millisecond})
			send(t, ca, part(t, "1", frame(t, message("1", strings.Repeat("x", 100)))[:40]))
			var v packet.HeaderView
			_, err := b.ReadHeaderView(&v)
			require.NoError(t, err)
			require.Equal(t, packet.TypePart, v.Type)
			require.True(t, b.Owes())
			require.False(t, b.Owes())
			require.NoError(t, b.Await(time.Second))
			_, err = b.ReadHeaderView(&v)
			require.ErrorContains(t, err, "a packet was not complete after 50ms")
		})
	}
}

// A side that has ended its output says no more what has come: it is sent the rest all the same.
func TestPartsAfterTheOtherSidesEnd(t *testing.T) {
	ca, cb := overTCP(t)
	a := socket.New(ca, socket.Options{})
	a.CutLarge()
	large := strings.Repeat("0123456789", 500_000)
	post(t, a, "1", large)
	require.NoError(t, cb.(*net.TCPConn).CloseWrite())
	requireOver(t, a)
	b := socket.New(cb, socket.Options{})
	requireMessage(t, b, "1", large)
	require.True(t, a.CloseWrite(10*time.Second))
	requireOver(t, b)
}

// Who waits for room for a large packet gets it in turn, and holds up no small one. The wait ends with its
// context, and with the socket.
func TestRoomForLargePackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := packet.NewBudget(100 << 20)
		ca, cb := pipe.New(pipe.Options{})
		a := socket.New(ca, socket.Options{MaxOutput: 1 << 20, Output: budget, WriteTimeout: time.Hour})
		b := socket.New(cb, socket.Options{})
		a.CutLarge()
		hears(a)
		large := strings.Repeat("0123456789", 90_000)
		post(t, a, "1", large)
		_, err := a.Encode(socket.Permit{}, nil, message("x", large))
		requireWriteError(t, err, socket.ErrOutputFull)

		sent := func(ctx context.Context, id string) chan error {
			done := make(chan error, 1)
			go func() {
				permit, err := a.Permit(ctx)
				if err != nil {
					done <- err
					return
				}
				f, err := a.Encode(permit, nil, message(id, large))
				if err == nil {
					err = sendFor(ctx, a, f, socket.Later)
				}
				done <- err
			}()
			synctest.Wait()
			require.Empty(t, done, "there is no room")
			return done
		}
		two := sent(t.Context(), "2")
		ctx, cancel := context.WithCancel(t.Context())
		gone := sent(ctx, "gone")
		three := sent(t.Context(), "3")
		require.False(t, a.OutputBusy() && !a.OutputFull())
		permit, err := a.Permit(t.Context()) // none of them has one
		require.NoError(t, err)
		f, err := a.Encode(permit, nil, message("small", "x"))
		require.NoError(t, err)
		require.NoError(t, sendFrame(a, f, socket.Later))
		cancel()
		requireWriteError(t, <-gone, context.Canceled)

		requireMessage(t, b, "small", "x")
		requireMessage(t, b, "1", large)
		require.NoError(t, <-two)
		requireMessage(t, b, "2", large)
		require.NoError(t, <-three)
		four := sent(t.Context(), "4")
		require.NoError(t, b.Close())
		synctest.Wait()
		require.NoError(t, a.Close())
		require.Error(t, <-four)
		require.Zero(t, budget.Used())
	})
}

// FuzzParts puts packets together from parts in any order, with parts that make no sense between them.
func FuzzParts(f *testing.F) {
	f.Add([]byte{0, 50, 1, 200, 0, 255, 1, 255, 2, 0, 0, 3, 9, 9})
	f.Add([]byte{0, 0, 0, 255, 7, 1, 8, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var wholes [][]byte
		for n, size := range []int{100, 1000, 3000} {
			wholes = append(wholes, frame(t, message(strconv.Itoa(n), strings.Repeat("a", size))))
		}
		left := make(map[byte][]byte)
		var stream []byte
		var want []string
		bad := false
		for len(ops) >= 2 && !bad {
			op, n := ops[0], int(ops[1])
			ops = ops[2:]
			which := op % 3
			id := strconv.Itoa(int(which))
			switch {
			case op < 3: // goes on, or begins
				rest, began := left[which]
				if !began {
					rest = wholes[which]
				}
				n = min(n*20, len(rest))
				head := 2*packet.LengthSize + int(binary.BigEndian.Uint32(wholes[which]))
				bad = !began && n < head
				stream = append(stream, part(t, id, rest[:n])...)
				if n == 0 { // which gives the packet up
					delete(left, which)
					bad = false
					continue
				}
				if bad {
					continue
				}
				if rest = rest[n:]; len(rest) > 0 {
					left[which] = rest
					continue
				}
				delete(left, which)
				want = append(want, id)
			case op < 6: // ends
				stream = append(stream, part(t, id, nil)...)
				delete(left, which)
			case op < 9: // a packet between
				stream = append(stream, frame(t, message("small", "x"))...)
				want = append(want, "small")
			default: // too much
				bad = true
				whole := wholes[which]
				if rest, began := left[which]; began {
					whole = append(rest, 1)
				} else {
					whole = append(whole[:len(whole):len(whole)], 1)
				}
				stream = append(stream, part(t, id, whole)...)
			}
		}
		budget := packet.NewBudget(1 << 20)
		ca, cb := pipe.New(pipe.Options{Buffer: len(stream) + 1, Chunk: 1000})
		defer cb.Close()
		send(t, ca, stream)
		require.NoError(t, ca.Close())
		b := socket.New(cb, socket.Options{Limits: packet.Limits{Budget: budget}})
		for _, id := range want {
			got, body, err := receive(b)
			require.NoError(t, err)
			require.Equal(t, id, got)
			if id != "small" {
				require.Equal(t, len(wholes[id[0]-'0']), len(frame(t, message(id, body))))
			}
		}
		_, _, err := receive(b)
		require.True(t, socket.Fatal(err), "%v", err)
		require.Equal(t, bad, err != io.EOF, "%v", err)
		require.Zero(t, budget.Used())
	})
}
