package credit_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/credit"
)

func newSender(t *testing.T, first, window, granted uint64) *credit.Sender {
	s := new(credit.Sender)
	s.Init(first)
	if window > 0 {
		require.NoError(t, s.Open(window, granted))
	}
	return s
}

func requireTaken(t *testing.T, s *credit.Sender, amount, cost uint64) {
	t.Helper()
	got, ok := s.TryTake(amount)
	require.True(t, ok)
	require.Equal(t, cost, got)
}

func requireNotTaken(t *testing.T, s *credit.Sender, amount uint64) {
	t.Helper()
	_, ok := s.TryTake(amount)
	require.False(t, ok)
}

func TestSenderKeepsToItsCredit(t *testing.T) {
	s := newSender(t, 10, 0, 0)
	requireNotTaken(t, s, 9) // may cost more or less, as the window is not known yet
	requireTaken(t, s, 6, 6)
	requireNotTaken(t, s, 5)
	requireNotTaken(t, s, 1000) // it may cost less, but the window is not known yet
	require.False(t, s.Known())
	require.NoError(t, s.Open(100, 100))
	require.True(t, s.Known())
	requireTaken(t, s, 70, 70)
	requireTaken(t, s, 20, 20)
	requireNotTaken(t, s, 5)
	requireTaken(t, s, 4, 4)
	require.NoError(t, s.Grant(174))
	requireNotTaken(t, s, 1000)
	require.NoError(t, s.Grant(175))
	requireTaken(t, s, 1000, 75)
	requireNotTaken(t, s, 1)
	s.Return(75)
	requireTaken(t, s, 74, 74)
}

func TestGrantsThatMakeNoSense(t *testing.T) {
	s := newSender(t, 10, 0, 0)
	require.ErrorIs(t, s.Grant(11), credit.ErrGrant, "before the window")
	require.ErrorIs(t, s.Open(0, 10), credit.ErrGrant)
	require.NoError(t, s.Open(100, 100))
	require.NoError(t, s.Grant(100), "the same again")
	require.NoError(t, s.Grant(50), "less than before")
	requireTaken(t, s, 60, 60)
	requireTaken(t, s, 40, 40)
	requireNotTaken(t, s, 1)
	for _, amount := range []uint64{201, 1 << 63, math.MaxUint64} {
		require.ErrorIs(t, s.Grant(amount), credit.ErrGrant)
		requireNotTaken(t, s, 1)
	}
	require.NoError(t, s.Open(1000, 200), "another window")
	require.ErrorIs(t, s.Grant(201), credit.ErrGrant, "the first window counts")
	requireTaken(t, s, 1000, 75)
}

func TestUnboundedSender(t *testing.T) {
	s := newSender(t, 10, 0, 0)
	done := make(chan error, 1)
	go func() { _, err := s.Take(t.Context(), 1000, nil); done <- err }()
	require.NoError(t, s.Open(credit.Unbounded, 0))
	require.NoError(t, <-done)
	for range 100 {
		requireTaken(t, s, math.MaxUint64, 0)
	}
	require.NoError(t, s.Grant(5))
	s.End(errors.New("over"))
	requireNotTaken(t, s, 1)
}

// Takes that wait are served in their order, and a large one is not passed by smaller ones.
func TestTakesAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSender(t, 10, 100, 10)
		var mu sync.Mutex
		var order []uint64
		wait := func(ctx context.Context, amount uint64) {
			go func() {
				_, err := s.Take(ctx, amount, nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					order = append(order, amount)
				}
			}()
			synctest.Wait()
		}
		requireTaken(t, s, 10, 10)
		ctx, cancel := context.WithCancel(t.Context())
		wait(t.Context(), 20)
		wait(ctx, 50)
		wait(t.Context(), 1)
		wait(t.Context(), 2)
		require.Equal(t, 4, s.Waiting())
		require.NoError(t, s.Grant(29))
		synctest.Wait()
		require.Empty(t, order)
		require.NoError(t, s.Grant(40))
		synctest.Wait()
		require.Equal(t, []uint64{20}, order)
		requireNotTaken(t, s, 1)
		cancel() // the large one gives up, so that those behind it are served
		synctest.Wait()
		require.ElementsMatch(t, []uint64{20, 1, 2}, order)
		require.Zero(t, s.Waiting())
	})
}

func TestEndOfASender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSender(t, 1, 0, 0)
		over := errors.New("over")
		errs := make(chan error, 3)
		for range 3 {
			go func() { _, err := s.Take(context.Background(), 2, nil); errs <- err }()
		}
		synctest.Wait()
		s.End(over)
		s.End(errors.New("another"))
		for range 3 {
			require.Equal(t, over, <-errs)
		}
		_, err := s.Take(context.Background(), 1, nil)
		require.Equal(t, over, err)
		require.NoError(t, s.Open(10, 10))
		requireNotTaken(t, s, 1)
		s.Return(1)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		live := newSender(t, 1, 0, 0)
		_, err = live.Take(ctx, 2, nil)
		require.ErrorIs(t, err, context.Canceled)
		requireTaken(t, live, 1, 1)
	})
}

func TestReceiverGrantsWhatWasHandled(t *testing.T) {
	var r credit.Receiver
	r.Init(100, 10)
	require.EqualValues(t, 100, r.Window())
	cost, err := r.Received(10)
	require.NoError(t, err)
	require.EqualValues(t, 10, cost)
	grant, more := r.Grant()
	require.True(t, more)
	require.EqualValues(t, 100, grant)
	_, more = r.Grant()
	require.False(t, more)
	grant, due := r.Handled(cost)
	require.False(t, due, "%d", grant) // not worth a packet
	cost, err = r.Received(1000)
	require.NoError(t, err)
	require.EqualValues(t, 75, cost, "three quarters of the window")
	_, err = r.Received(20)
	require.ErrorIs(t, err, credit.ErrOverdrawn)
	require.ErrorContains(t, err, "more was sent than was granted: 105 where 100 were granted")

	r = credit.Receiver{}
	r.Init(5, 10) // a window that is less than what comes first
	require.EqualValues(t, 10, r.Window())
	r = credit.Receiver{}
	r.Init(credit.Unbounded, 10)
	for range 3 {
		cost, err = r.Received(math.MaxUint64)
		require.NoError(t, err)
		_, due = r.Handled(cost)
		require.False(t, due)
	}
	require.Zero(t, r.Held())
}

// run plays a connection by the choices given, one byte for each step, and checks after each step what must
// always hold. Packets and grants travel in queues, which keep the order in which they were sent; what is
// handled is handled in any order.
func run(t *testing.T, window, first uint64, next func() (byte, bool)) {
	s, r := new(credit.Sender), new(credit.Receiver)
	s.Init(first)
	r.Init(window, first)
	var wire, held, grants []uint64 // amounts that travel; costs of what was received; grants that travel
	var sent, heldCost uint64
	opened, heardOpen := false, false
	for {
		choice, ok := next()
		if !ok {
			break
		}
		switch arg := uint64(choice >> 3); choice % 8 {
		case 0, 1: // send
			amount := arg*arg*arg + 1
			if cost, ok := s.TryTake(amount); ok {
				wire = append(wire, amount)
				sent += cost
			}
		case 2: // take and give back
			if cost, ok := s.TryTake(arg + 1); ok {
				s.Return(cost)
			}
		case 3: // a packet comes
			if len(wire) > 0 {
				cost, err := r.Received(wire[0])
				require.NoError(t, err, "the sender has kept to its credit")
				wire = wire[1:]
				held = append(held, cost)
				heldCost += cost
				if !opened {
					opened = true
					r.Grant()
				}
			}
		case 4, 5: // one is handled
			if len(held) > 0 {
				i := int(arg) % len(held)
				heldCost -= held[i]
				if grant, due := r.Handled(held[i]); due {
					grants = append(grants, grant)
				}
				held = append(held[:i], held[i+1:]...)
			}
		case 6: // a grant comes, perhaps twice; the first thing that comes is the window
			switch {
			case opened && !heardOpen:
				heardOpen = true
				require.NoError(t, s.Open(r.Window(), r.Window()))
			case heardOpen && len(grants) > 0:
				require.NoError(t, s.Grant(grants[0]))
				if arg%2 == 0 {
					grants = grants[1:]
				}
			}
		case 7: // an old grant comes again
			require.NoError(t, s.Grant(min(arg, first)))
		}
		require.LessOrEqual(t, heldCost, r.Window(), "more is held than the window")
		require.Equal(t, heldCost, r.Held())
	}
	// In the end everything was handled, and whatever is sent next can be sent.
	for _, amount := range wire {
		cost, err := r.Received(amount)
		require.NoError(t, err)
		held = append(held, cost)
	}
	for _, cost := range held {
		if grant, due := r.Handled(cost); due {
			grants = append(grants, grant)
		}
	}
	require.Zero(t, r.Held())
	if !heardOpen {
		require.NoError(t, s.Open(r.Window(), r.Window()))
	}
	for _, grant := range grants {
		require.NoError(t, s.Grant(grant))
	}
	_, ok := s.TryTake(math.MaxUint64)
	require.True(t, ok, "credit was lost")
}

func TestAnyInterleaving(t *testing.T) {
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		window := 1 + rnd.Uint64N(1<<rnd.UintN(16))
		left := rnd.IntN(400)
		run(t, window, 1+rnd.Uint64N(64), func() (byte, bool) {
			left--
			return byte(rnd.Uint32()), left >= 0
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzCredit(f *testing.F) {
	f.Add(uint16(100), uint8(10), []byte{0, 8, 3, 4, 6, 16, 2, 7, 255})
	f.Fuzz(func(t *testing.T, window uint16, first uint8, choices []byte) {
		run(t, uint64(window)+1, uint64(first)+1, func() (byte, bool) {
			if len(choices) == 0 {
				return 0, false
			}
			c := choices[0]
			choices = choices[1:]
			return c, true
		})
	})
}

// Whatever is granted, a Sender never sends more than a window beyond what it had sent when the grant came.
func FuzzGrants(f *testing.F) {
	f.Add(uint64(100), uint64(200), uint64(math.MaxUint64), uint64(0))
	f.Fuzz(func(t *testing.T, window, a, b, c uint64) {
		s := new(credit.Sender)
		s.Init(50)
		_ = s.Open(window, a)
		var sent uint64
		for _, grant := range []uint64{b, c, a, b + c} {
			before := sent
			_ = s.Grant(grant)
			for _, n := range []uint64{1 << 62, 1 << 40, 1 << 20, 1 << 10, 64, 8, 1} {
				for range 70 {
					cost, ok := s.TryTake(n)
					if !ok {
						break
					}
					sent += cost
				}
			}
			if window != 0 && window != credit.Unbounded {
				require.LessOrEqual(t, sent-before, max(window, 50))
			}
		}
	})
}

// Many goroutines send, and many handle: all of it goes through, whatever the window.
func TestSendersAndHandlersAtOnce(t *testing.T) {
	for _, window := range []uint64{1, 7, 100, 10_000} {
		const senders, each = 8, 500
		s, r := new(credit.Sender), new(credit.Receiver)
		s.Init(1)
		r.Init(window, 1)
		first, _ := r.Grant()
		require.NoError(t, s.Open(r.Window(), first))
		wire := make(chan uint64, senders*each)
		var wg sync.WaitGroup
		for i := range senders {
			wg.Go(func() {
				for n := range each {
					amount := uint64(1 + (i+n)%13)
					if _, err := s.Take(t.Context(), amount, nil); err != nil {
						t.Error(err)
						return
					}
					wire <- amount
				}
			})
		}
		costs := make(chan uint64, senders*each)
		go func() {
			for amount := range wire {
				cost, err := r.Received(amount)
				if err != nil {
					t.Error(err)
				}
				costs <- cost
			}
			close(costs)
		}()
		var handlers sync.WaitGroup
		for range 4 {
			handlers.Go(func() {
				for cost := range costs {
					if grant, due := r.Handled(cost); due {
						if err := s.Grant(grant); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		close(wire)
		handlers.Wait()
		require.Zero(t, r.Held())
	}
}

// link carries what two Flows say to each other, in order.
type link struct {
	window int64
	ended  error

	mu    sync.Mutex
	asked int
	metas []map[string]string
}

func (l *link) CreditPlaces() (pulls, streams int) { return 100, 10 }
func (l *link) OtherTakesParts()                   {}

func (l *link) AskForCredit(map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
}

func (l *link) CreditWindow() int64 { return l.window }

func (l *link) CreditEnd() error { return l.ended }

func (l *link) SendCredit(meta map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.metas = append(l.metas, meta)
}

func (l *link) take() (metas []map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	metas, l.metas = l.metas, nil
	return metas
}

// A sender asks when half of what it may send first is used up, and once.
func TestFlowOfTwoSides(t *testing.T) {
	var out, in credit.Flow
	here, there := new(link), &link{window: 1 << 20}
	var taken atomic.Uint64
	out.Init(here, &taken)
	in.Init(there, &taken)
	var costs []uint64
	send := func(amount uint64) {
		t.Helper()
		_, ok := out.TryTake(amount)
		require.True(t, ok)
		cost, err := in.Received(amount)
		require.NoError(t, err)
		costs = append(costs, cost)
	}
	send(credit.First / 2)
	require.Zero(t, here.asked)
	require.Empty(t, there.take(), "nobody has asked")
	send(1)
	send(1)
	require.Equal(t, 1, here.asked)
	for _, first := range []bool{true, false} {
		was, err := in.Asked(nil)
		require.NoError(t, err)
		require.Equal(t, first, was)
	}
	metas := there.take()
	require.Len(t, metas, 1)
	require.NoError(t, out.Granted(metas[0]))
	send(500_000)
	_, ok := out.TryTake(600_000)
	require.False(t, ok)
	require.False(t, out.Waits())
	done := make(chan error)
	go func() { _, err := out.Take(t.Context(), 600_000, nil); done <- err }()
	for _, cost := range costs {
		in.Handled(cost)
	}
	metas = there.take()
	require.Len(t, metas, 1, "one grant for all of them")
	require.NoError(t, out.Granted(metas[0]))
	require.NoError(t, <-done)
	_, err := in.Received(1 << 20)
	require.NoError(t, err)
	_, err = in.Received(1 << 20)
	require.ErrorIs(t, err, credit.ErrOverdrawn)
}

// A side that does not ask for credit is not bound by it, and a side that does not know it bounds nobody.
func TestFlowWithASideThatDoesNotKnowCredit(t *testing.T) {
	var in, out credit.Flow
	var l link
	in.Init(&l, new(atomic.Uint64))
	for range 10 {
		cost, err := in.Received(1 << 20)
		require.NoError(t, err)
		in.Handled(cost)
	}
	require.Empty(t, l.take())
	out.Init(&l, new(atomic.Uint64))
	out.Refused() // before anything was sent
	for !out.Waits() {
		if _, ok := out.TryTake(credit.First / 4); !ok {
			break
		}
	}
	out.Refused()
	_, ok := out.TryTake(math.MaxUint64)
	require.True(t, ok)
	var over credit.Flow
	l.ended = errors.New("over")
	over.Init(&l, new(atomic.Uint64))
	over.End(l.ended)
	_, ok = over.TryTake(1)
	require.False(t, ok)
	_, err := over.Take(t.Context(), 1, nil)
	require.EqualError(t, err, "over")
}

func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f credit.Flow
		var l link
		f.Init(&l, new(atomic.Uint64))
		f.Interrupt(errors.New("nobody waits"))
		done := make(chan error, 1)
		go func() { _, err := f.Take(t.Context(), 1<<20, nil); done <- err }()
		synctest.Wait()
		require.True(t, f.Waits())
		stop := errors.New("stop")
		f.Interrupt(stop)
		require.Equal(t, stop, <-done)
		_, ok := f.TryTake(1)
		require.True(t, ok)
		f.End(errors.New("over"))
	})
}

// Whatever the other side grants, it is taken or refused with an error, and what may be sent stays within a
// window.
func FuzzGranted(f *testing.F) {
	f.Add("100000", "100000", "100000", "200000")
	f.Add("none", "", "1", "18446744073709551616")
	f.Add("-1", "0", "", "99999999999999999999")
	f.Fuzz(func(t *testing.T, window, a, window2, b string) {
		var flow credit.Flow
		var l link
		flow.Init(&l, new(atomic.Uint64))
		sent := uint64(0)
		for flow.Out().Sent() <= credit.First/2 {
			cost, _ := flow.TryTake(10_000)
			sent += cost
		}
		_ = flow.Granted(map[string]string{credit.KeyWindow: window, credit.KeyAmount: a})
		_ = flow.Granted(map[string]string{credit.KeyWindow: window2, credit.KeyAmount: b})
		if window == credit.None || window2 == credit.None {
			return
		}
		if _, ok := flow.TryTake(1 << 62); ok { // costs three quarters of a window at most
			sent = flow.Out().Sent() - sent
			require.Less(t, sent, uint64(math.MaxInt64))
		}
	})
}

// A window that grows and shrinks at any time loses no credit, and the sender never has more on the way than
// the largest window and one packet.
func TestWindowThatChanges(t *testing.T) {
	const window, most = 1000, 16_000
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		s, r := new(credit.Sender), new(credit.Receiver)
		s.InitOpen(window)
		r.Init(window, window)
		r.GrowTo(most)
		var held, grants []uint64
		sum := uint64(0)
		for range 500 {
			switch rnd.IntN(8) {
			case 0, 1, 2:
				amount := 1 + rnd.Uint64N(window)
				if _, ok := s.TryTake(amount); ok {
					cost, err := r.Received(amount)
					require.NoError(t, err)
					held = append(held, cost)
					sum += cost
				}
			case 3, 4, 5:
				if len(held) > 0 {
					if grant, due := r.Handled(held[0]); due {
						grants = append(grants, grant)
					}
					sum -= held[0]
					held = held[1:]
				}
			case 6:
				if grant, more := r.Grow(); more {
					grants = append(grants, grant)
				}
			case 7:
				if rnd.IntN(4) == 0 {
					r.Shrink()
				}
			}
			if len(grants) > 0 && rnd.IntN(2) == 0 {
				require.NoError(t, s.Grant(grants[0]))
				grants = grants[1:]
			}
			require.LessOrEqual(t, sum, uint64(most))
			require.LessOrEqual(t, r.Window(), uint64(most))
		}
		for _, cost := range held {
			if grant, due := r.Handled(cost); due {
				grants = append(grants, grant)
			}
		}
		for _, grant := range grants {
			require.NoError(t, s.Grant(grant))
		}
		_, ok := s.TryTake(math.MaxUint64)
		require.True(t, ok, "credit was lost, seed %d", seed)
	}
	// Packets that cost less than they take keep the window as it is.
	var r credit.Receiver
	r.Init(window, window)
	r.GrowTo(most)
	cost, err := r.Received(10 * window)
	require.NoError(t, err)
	r.Handled(cost)
	_, more := r.Grow()
	require.False(t, more)
	require.EqualValues(t, window, r.Window())
}
