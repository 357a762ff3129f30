package keepalive_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/keepalive"
)

const period = 16 * time.Second

// link is a connection on which a test says what happens.
type link struct {
	mu      sync.Mutex
	signs   keepalive.Signs
	lingers bool
	asked   []bool
	gaveUp  []time.Duration
}

func (l *link) Signs() keepalive.Signs {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signs
}

func (l *link) Lingers() bool { return l.lingers }

func (l *link) Ask(answer bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, answer)
}

func (l *link) GiveUp(after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gaveUp = append(l.gaveUp, after)
}

// wasAsked and wasGivenUp return what has been done about the link.
func (l *link) wasAsked() []bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *link) wasGivenUp() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gaveUp
}

// is changes the signs of life.
func (l *link) is(change func(s *keepalive.Signs)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.signs)
}

// keeperOf returns a Keeper of the link, and a function that ends the waiting.
func keeperOf(l *link) (k *keepalive.Keeper, end func()) {
	var over atomic.Bool
	k = new(keepalive.Keeper)
	k.Init(period, func() []keepalive.Conn {
		if over.Load() {
			return nil
		}
		return []keepalive.Conn{l}
	})
	return k, func() { over.Store(true) }
}

// look waits until the Keeper has looked n times more.
func look(n int) {
	time.Sleep(time.Duration(n) * period / 4)
	synctest.Wait()
}

// A silent link is asked after a period, and given up after another.
func TestSilenceIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(link)
		k, end := keeperOf(l)
		require.False(t, k.Running())
		k.Expect()
		require.True(t, k.Running())
		look(4)
		require.Empty(t, l.wasAsked())
		look(1)
		require.Equal(t, []bool{true}, l.wasAsked())
		look(3)
		require.Empty(t, l.wasGivenUp())
		look(1)
		require.Equal(t, []time.Duration{2 * period}, l.wasGivenUp())
		require.Equal(t, []bool{true}, l.wasAsked(), "once")
		end()
		look(1)
		require.False(t, k.Running(), "nothing is waited for")
	})
}

// What the other side does is a sign of life, and what only its kernel does is one while this side's
// output waits for that.
func TestSignsOfLife(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *keepalive.Signs)
		life   bool
	}{
		{"something has come", func(s *keepalive.Signs) { s.Reads++ }, true},
		{"this side has written", func(s *keepalive.Signs) { s.Writes++ }, false},
		{"this side has written, and more waits", func(s *keepalive.Signs) { s.Waits = true; s.Writes++ },
			true},
		{"the kernel has taken something", func(s *keepalive.Signs) { s.Acked++ }, false},
		{"the kernel has taken something, and more waits",
			func(s *keepalive.Signs) { s.Waits = true; s.Acked++ }, true},
		{"the kernel has less to take", func(s *keepalive.Signs) { s.Unacked-- }, true},
		{"the kernel has more to take", func(s *keepalive.Signs) { s.Unacked++ }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &link{signs: keepalive.Signs{Unacked: 1000}}
				k, _ := keeperOf(l)
				k.Expect()
				for range 20 {
					l.is(c.change)
					look(1)
				}
				require.Equal(t, c.life, len(l.wasAsked()) == 0)
				require.Equal(t, c.life, len(l.wasGivenUp()) == 0)
				k.Stop()
			})
		})
	}
}

// A link that lingers is asked once a period, for no answer, and never given up.
func TestLingeringLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{lingers: true}
		k, _ := keeperOf(l)
		k.Expect()
		look(13)
		require.Equal(t, []bool{false, false, false}, l.wasAsked())
		require.Empty(t, l.wasGivenUp())
		k.Stop()
		look(10)
		require.Len(t, l.wasAsked(), 3)
	})
}

// Who expects something while the Keeper is about to stop is seen.
func TestExpectIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(link)
		k := new(keepalive.Keeper)
		var looks atomic.Int32
		k.Init(period, func() []keepalive.Conn {
			if looks.Add(1) == 1 { // between the two looks of a Keeper that is about to stop
				return nil
			}
			return []keepalive.Conn{l}
		})
		k.Expect()
		look(1)
		require.EqualValues(t, 2, looks.Load())
		require.True(t, k.Running())
		look(5)
		require.Equal(t, []bool{true}, l.wasAsked())
		k.Stop()
	})
}

// A period that is none turns the Keeper off.
func TestOff(t *testing.T) {
	k := new(keepalive.Keeper)
	k.Init(-1, func() []keepalive.Conn { panic("nobody looks") })
	k.Expect()
	require.False(t, k.Running())
	k.Stop()
}
