package docs_test

import (
	"reflect"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/henrylee2cn/teleport/plugin/describe/docs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type (
	cart             struct{ Items int }
	page[T any]      struct{ List T }
	holder[K, V any] struct{}
)

func (*cart) Add(int) {}
func (cart) Len()     {}
func (page[T]) Turn() {}

func checkout(int)       {}
func generic[T any](_ T) {}

// What is added is found by a type, a field, or the runtime's name of a function.
func TestLookUp(t *testing.T) {
	docs.Add[cart](map[string]string{"cart": "a cart", "cart.Items": "what is in it", "cart.Add": "adds",
		"checkout": "pays", "page": "a page", "page.List": "its list", "generic": "takes all",
		"page.Turn": "turns", "cart.Len": "counts"})
	nameOf := func(fn interface{}) string { return runtime.FuncForPC(reflect.ValueOf(fn).Pointer()).Name() }
	add, _ := reflect.TypeFor[*cart]().MethodByName("Add")
	for _, tc := range []struct{ name, got, want string }{
		{"a type", docs.OfType(reflect.TypeFor[cart]()), "a cart"},
		{"a type with arguments", docs.OfType(reflect.TypeFor[page[cart]]()), "a page"},
		{"a type without a comment", docs.OfType(reflect.TypeFor[holder[int, cart]]()), ""},
		{"a type without a name", docs.OfType(reflect.TypeFor[[]cart]()), ""},
		{"a field", docs.OfField(reflect.TypeFor[cart](), "Items"), "what is in it"},
		{"a field of a type with arguments", docs.OfField(reflect.TypeFor[page[int]](), "List"), "its list"},
		{"a field of no type with a name", docs.OfField(reflect.TypeFor[struct{ Items int }](), "Items"), ""},
		{"a function", docs.OfFunc(nameOf(checkout)), "pays"},
		{"a function with type arguments", docs.OfFunc(nameOf(generic[cart])), "takes all"},
		{"a method", docs.OfFunc(runtime.FuncForPC(add.Func.Pointer()).Name()), "adds"},
		{"a method as a function", docs.OfFunc(nameOf(new(cart).Add)), "adds"},
		{"a method of a value", docs.OfFunc(nameOf(cart.Len)), "counts"},
		{"a method of a type with arguments", docs.OfFunc(nameOf(page[cart].Turn)), "turns"},
		{"a function without a name", docs.OfFunc(nameOf(func() {})), ""},
		{"nothing", docs.OfFunc(""), ""},
	} {
		t.Run(tc.name, func(t *testing.T) { require.Equal(t, tc.want, tc.got) })
	}
}

// Two files of a package may add to it, at any time; the later text counts.
func TestAddIsSafe(t *testing.T) {
	texts := map[string]string{"holder": "first"}
	docs.Add[cart](texts)
	texts["holder"] = "changed"
	require.Equal(t, "first", docs.OfType(reflect.TypeFor[holder[int, int]]()))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { docs.Add[cart](map[string]string{"holder": "second"}) })
		wg.Go(func() { docs.OfType(reflect.TypeFor[cart]()) })
	}
	wg.Wait()
	require.Equal(t, "second", docs.OfType(reflect.TypeFor[holder[int, int]]()))
	docs.Add[cart](map[string]string{"holder": ""})
}
