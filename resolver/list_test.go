package resolver

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(List)
		one, two := resolve(t, l), resolve(t, l)
		synctest.Wait()
		require.Empty(t, one, "nothing is known yet")

		routes := []string{"/a"}
		require.NoError(t, l.Set(tp.Server{Addr: "a:1", Weight: 5, Routes: routes}))
		routes[0] = "/changed"
		want := []tp.Server{{Addr: "a:1", Weight: 5, Routes: []string{"/a"}}}
		require.Equal(t, want, one.next(t))
		require.Equal(t, want, two.next(t))
		got := l.Servers()
		require.Equal(t, want, got)
		got[0].Routes[0] = "/changed"
		require.Equal(t, want, l.Servers())

		require.Error(t, l.Set(tp.Server{Addr: "b:1"}, tp.Server{Addr: "b:1"}))
		synctest.Wait()
		require.Empty(t, one, "a list that is wrong changes nothing")
		require.Equal(t, want, l.Servers())

		require.NoError(t, l.Set())
		require.Empty(t, one.next(t), "the program says that there are none")
		require.NoError(t, l.Set(tp.Server{Addr: "c:1"}))
		require.Equal(t, "c:1", addrs(resolve(t, l).next(t)), "one who comes later")
	})
}

func TestStatic(t *testing.T) {
	require.Equal(t, []tp.Server{{Addr: "a:1"}, {Addr: "b:1"}}, resolve(t, Static("a:1", "b:1")).next(t))
	s := tp.Server{Id: "i", Addr: "a:1", Zone: "z"}
	require.Equal(t, []tp.Server{s}, resolve(t, StaticServers(s)).next(t))
}

// Whoever listens gets the last list in the end, however many set it.
func TestListFromManyGoroutines(t *testing.T) {
	l := new(List)
	var all []told
	for range 4 {
		all = append(all, resolve(t, l))
	}
	var setting sync.WaitGroup
	for i := range 4 {
		setting.Go(func() {
			for j := range 20 {
				if err := l.Set(tp.Server{Addr: fmt.Sprintf("a%d:%d", i, j+1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	setting.Wait()
	require.NoError(t, l.Set(tp.Server{Addr: "last:1"}))
	for _, c := range all {
		for addrs(c.next(t)) != "last:1" {
		}
	}
}
