//lint:file-ignore U1000 the fields are there to be found by reflection

package tp

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// doNotCopy is what programs put into their own types for go vet.
type doNotCopy struct{}

func (*doNotCopy) Lock()   {}
func (*doNotCopy) Unlock() {}

// held is a controller that holds a T.
type held[T any] struct {
	PullCtx
	it T
}

func (*held[T]) Call(*int) (int, Xerror) { return 0, nil }

type (
	deeply  struct{ inner [2]struct{ mu sync.Mutex } }
	base    struct{ n atomic.Int32 }
	heldIn  struct{ base }
	rooms   struct{ mu sync.Mutex }
	pointer interface{ sync.Locker }
)

func TestControllerThatHoldsALock(t *testing.T) {
	p := newTestPeer(t, nil)
	refused := func(ctrl interface{}) (msg string) {
		defer func() { msg = fmt.Sprint(recover()) }()
		p.PullRouter.Reg(ctrl)
		return ""
	}
	for _, c := range []struct {
		ctrl interface{}
		what string
	}{
		{new(held[sync.Mutex]), ".it is a sync.Mutex"},
		{new(held[sync.RWMutex]), ".it is a sync.RWMutex"},
		{new(held[sync.WaitGroup]), ".it.noCopy is a sync.noCopy"},
		{new(held[sync.Once]), ".it._ is a sync.noCopy"},
		{new(held[sync.Map]), ".it._ is a sync.noCopy"},
		{new(held[sync.Pool]), ".it.noCopy is a sync.noCopy"},
		{new(held[sync.Cond]), ".it.noCopy is a sync.noCopy"},
		{new(held[atomic.Int64]), ".it._ is a atomic.noCopy"},
		{new(held[atomic.Bool]), ".it._ is a atomic.noCopy"},
		{new(held[atomic.Pointer[int]]), " is a atomic.noCopy"},
		{new(held[atomic.Value]), ".it is a atomic.Value"},
		{new(held[doNotCopy]), ".it is a tp.doNotCopy"},
		{new(held[deeply]), ".it.inner[0].mu is a sync.Mutex"},
		{new(held[heldIn]), ".it.base.n._ is a atomic.noCopy"},
	} {
		msg := refused(c.ctrl)
		require.Contains(t, msg, c.what)
		require.Contains(t, msg, "behind a pointer")
		require.Contains(t, msg, "HandlePull with a closure.")
	}
	for _, ctrl := range []interface{}{
		new(held[*sync.Mutex]), new(held[*rooms]), new(held[[]sync.Mutex]), new(held[map[string]*rooms]),
		new(held[pointer]), new(held[[0]sync.Mutex]), new(held[func()]), new(held[chan sync.Mutex]),
	} {
		fresh := newTestPeer(t, nil)
		require.NotPanics(t, func() { fresh.PullRouter.Reg(ctrl) }, "%T", ctrl)
	}
	require.PanicsWithValue(t,
		"tp: Reg(*tp.guarded): guarded.mu is a sync.Mutex, and each call gets a copy of the controller, of "+
			"the lock too; "+
			"put what the calls share behind a pointer, in a field of type *State for example, or use "+
			"HandlePush with a closure.",
		func() { p.PushRouter.Reg(new(guarded)) })
}

type guarded struct {
	PushCtx
	mu sync.Mutex
}

func (*guarded) Call(*int) {}

// The way out that the panic names.
type Counter struct {
	PullCtx
	*counted
}

type counted struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *Counter) Add(name *string) (int, Xerror) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[*name]++
	return c.n[*name], nil
}

func TestStateOfAControllerBehindAPointer(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	srv.PullRouter.Reg(&Counter{counted: &counted{n: make(map[string]int)}})
	sess, _ := connect(t, cli, srv, pipe.Options{})
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for range 50 {
				sess.Pull("/counter/add", "a", nil)
			}
		})
	}
	calls.Wait()
	var n int
	require.Nil(t, sess.Pull("/counter/add", "a", &n).Xerror)
	require.Equal(t, 201, n)
}
