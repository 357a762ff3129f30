package pipe_test

import (
	"bytes"
	"io"
	"math"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

// ends returns a connection whose first end has the faults.
func ends(f pipe.Faults, o pipe.Options) (a, b *pipe.End) {
	a, b = pipe.Ends(o)
	a.SetFaults(f)
	return a, b
}

func read(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(c, p)
	require.NoError(t, err)
	return string(p)
}

// nothing checks that nothing can be read now.
func nothing(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Nanosecond)))
	_, err := c.Read(make([]byte, 1))
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	require.True(t, ne.Timeout())
	require.NoError(t, c.SetReadDeadline(time.Time{}))
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ends(pipe.Faults{Delay: time.Second}, pipe.Options{})
		start := time.Now()
		write(t, a, "first ")
		time.Sleep(300 * time.Millisecond) // of the bubble's clock
		write(t, a, "second")
		write(t, b, "the other way has no delay")
		require.Equal(t, "the other", read(t, a, 9))
		require.Equal(t, 300*time.Millisecond, time.Since(start))
		require.Equal(t, "first ", read(t, b, 6))
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, "second", read(t, b, 6))
		require.Equal(t, 1300*time.Millisecond, time.Since(start))
		start = time.Now()
		require.NoError(t, a.Close())
		_, err := b.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, time.Second, time.Since(start), "the end has the delay too")
	})
}

// A shorter delay lets nothing overtake, and none lets all arrive.
func TestChangeOfDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ends(pipe.Faults{Delay: time.Minute}, pipe.Options{})
		start := time.Now()
		write(t, a, "slow ")
		a.SetFaults(pipe.Faults{Delay: time.Second})
		write(t, a, "fast ")
		require.Equal(t, "slow fast ", read(t, b, 10))
		require.Equal(t, time.Minute, time.Since(start))

		a.SetFaults(pipe.Faults{Delay: time.Hour})
		write(t, a, "very slow ")
		a.SetFaults(pipe.Faults{})
		write(t, a, "at once")
		require.Equal(t, "very slow at once", read(t, b, 17))
		require.Equal(t, time.Minute, time.Since(start))
	})
}

func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ends(pipe.Faults{Bandwidth: 1000, Delay: time.Second}, pipe.Options{Buffer: 2000})
		start := time.Now()
		written := make(chan time.Duration, 1)
		go func() {
			_, err := a.Write(make([]byte, 5000))
			if err == nil {
				written <- time.Since(start)
			}
		}()
		read(t, b, 1)
		require.Equal(t, 1010*time.Millisecond, time.Since(start), "it comes piece by piece")
		read(t, b, 4999)
		within(t, 6*time.Second, time.Since(start))
		within(t, 4*time.Second, <-written)
	})
}

// within checks a time to a percent.
func within(t *testing.T, want, got time.Duration) {
	t.Helper()
	require.InEpsilon(t, want.Seconds(), got.Seconds(), 0.02)
}

func TestFlipAt(t *testing.T) {
	a, b := ends(pipe.Faults{FlipAt: []int64{0, 3, 5, 100}}, pipe.Options{Buffer: 4})
	go func() {
		_, _ = a.Write([]byte{1, 2})
		_, _ = a.Write([]byte{3, 4, 5, 6, 7, 8})
	}()
	require.Equal(t, []byte{^byte(1), 2, 3, ^byte(4), 5, ^byte(6), 7, 8}, []byte(read(t, b, 8)))
	// Offsets begin anew with every change.
	a.SetFaults(pipe.Faults{FlipAt: []int64{1}})
	write(t, a, "\x00\x00\x00")
	require.Equal(t, "\x00\xff\x00", read(t, b, 3))
}

func TestFlipRate(t *testing.T) {
	zeros := make([]byte, 10_000)
	flipped := func(rate float64, seed uint64) []byte {
		a, b := ends(pipe.Faults{FlipRate: rate, Seed: seed}, pipe.Options{})
		before := bytes.Clone(zeros)
		_, err := a.Write(zeros)
		require.NoError(t, err)
		require.Equal(t, before, zeros, "the writer's bytes are left alone")
		return []byte(read(t, b, len(zeros)))
	}
	count := func(p []byte) int { return len(p) - bytes.Count(p, []byte{0}) }
	require.Zero(t, count(flipped(0, 1)))
	require.Equal(t, len(zeros), count(flipped(1, 1)))
	one := flipped(0.01, 1)
	require.InDelta(t, 100, count(one), 40)
	require.Equal(t, one, flipped(0.01, 1), "the same seed")
	require.NotEqual(t, one, flipped(0.01, 2), "another seed")
	for _, x := range one {
		require.Zero(t, x&(x-1), "one bit of a byte")
	}
}

func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ends(pipe.Faults{Delay: time.Second}, pipe.Options{Buffer: 10})
		write(t, a, "lost")
		a.SetFaults(pipe.Faults{Silent: true})
		write(t, a, "much more than the buffer has room for")
		write(t, b, "other way")
		require.Equal(t, "other way", read(t, a, 9))
		time.Sleep(time.Hour) // of the bubble's clock
		nothing(t, b)
		a.SetFaults(pipe.Faults{})
		write(t, a, "heard")
		require.Equal(t, "heard", read(t, b, 5))
	})
}

// A connection that is closed in the silence stays open for the other side, until the silence ends.
func TestCloseInSilence(t *testing.T) {
	for _, f := range []pipe.Faults{{Silent: true}, {Stalled: true}} {
		synctest.Test(t, func(t *testing.T) {
			a, b := ends(f, pipe.Options{Buffer: 10})
			require.NoError(t, a.Close())
			nothing(t, b)
			write(t, b, "to nobody, and more than the buffer has room for")
			a.SetFaults(pipe.Faults{})
			_, err := b.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
			_, err = b.Write([]byte("x"))
			require.ErrorIs(t, err, errno.Pipe)
		})
	}
}

func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ends(pipe.Faults{}, pipe.Options{Buffer: 10})
		write(t, a, "before ")
		require.Equal(t, "before ", read(t, b, 7))
		a.SetFaults(pipe.Faults{Stalled: true})
		done := make(chan error, 1)
		go func() {
			_, err := a.Write([]byte("more than the buffer"))
			done <- err
		}()
		time.Sleep(time.Hour) // of the bubble's clock
		nothing(t, b)
		require.Empty(t, done, "the buffer is full")
		a.SetFaults(pipe.Faults{})
		require.Equal(t, "more than the buffer", read(t, b, 20))
		require.NoError(t, <-done)
	})
}

// A stall does not lose what has a delay.
func TestStalledWithDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ends(pipe.Faults{Delay: time.Second}, pipe.Options{})
		write(t, a, "under way")
		a.SetFaults(pipe.Faults{Delay: time.Second, Stalled: true})
		time.Sleep(time.Minute) // of the bubble's clock
		nothing(t, b)
		a.SetFaults(pipe.Faults{Delay: time.Second})
		require.Equal(t, "under way", read(t, b, 9))
	})
}

// The bytes before a cut arrive, each after its delay; and either end can be the one that writes.
func TestCutAfterInFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe.Ends(pipe.Options{})
		b.SetFaults(pipe.Faults{CutAfter: 4, Delay: time.Second})
		n, err := b.Write([]byte("123456"))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		require.Equal(t, 4, n)
		start := time.Now()
		got, err := io.ReadAll(a)
		require.NoError(t, err)
		require.Equal(t, "1234", string(got))
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestReset(t *testing.T) {
	for _, f := range []pipe.Faults{{}, {Silent: true}, {Stalled: true}, {Delay: time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			a, b := ends(f, pipe.Options{Buffer: 4})
			write(t, a, "1")
			errs := make(chan error, 3)
			go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
			go func() { _, err := b.Write([]byte("more than 4")); errs <- err }()
			synctest.Wait()
			require.NoError(t, b.SetReadDeadline(time.Time{}))
			b.Reset()
			<-errs
			<-errs
			for _, e := range []*pipe.End{a, b} {
				_, err := e.Read(make([]byte, 1))
				require.ErrorIs(t, err, errno.Reset)
				_, err = e.Write([]byte("x"))
				require.ErrorIs(t, err, errno.Pipe)
				require.NoError(t, e.Close())
				_, err = e.Read(make([]byte, 1))
				require.ErrorIs(t, err, net.ErrClosed)
			}
		})
	}
}

func TestFaultsThatCannotBe(t *testing.T) {
	for want, f := range map[string]pipe.Faults{
		"Delay: -1s is negative; expected how long bytes are under way, or 0":   {Delay: -time.Second},
		"Bandwidth: -1 is negative; expected bytes a second, or 0 for no bound": {Bandwidth: -1},
		"FlipRate: -0.1 is no probability; expected a number from 0 to 1":       {FlipRate: -0.1},
		"FlipRate: 1.5 is no probability; expected a number from 0 to 1":        {FlipRate: 1.5},
		"FlipRate: NaN is no probability; expected a number from 0 to 1":        {FlipRate: math.NaN()},
		"FlipRate: +Inf is no probability; expected a number from 0 to 1":       {FlipRate: math.Inf(1)},
		"FlipAt[1]: -5 is negative; expected the offset of a byte, from 0":      {FlipAt: []int64{1, -5}},
	} {
		require.Equal(t, want, f.Problem())
	}
	good := pipe.Faults{Delay: math.MaxInt64, Bandwidth: math.MaxInt64, FlipRate: 1, FlipAt: []int64{0}}
	require.Empty(t, good.Problem())
	a, b := ends(good, pipe.Options{})
	write(t, a, "x") // which never arrives
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}
