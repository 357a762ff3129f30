package tp

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

type shapeArgs struct {
	N    int
	Fail bool
	Text string
	Keep *int
}

func (a *shapeArgs) xerror() Xerror {
	if a.Fail {
		return NewXerror(int32(a.N), a.Text)
	}
	return nil
}

type namedPointer *shapeArgs

// byValue has methods with value receivers, which a pointer's type has through
// wrappers that the compiler makes.
type byValue struct {
	Big [20]int
	Tag string
}

func (v byValue) ValuePointer(a *shapeArgs) (*shapeArgs, Xerror) {
	a.Text += v.Tag + fmt.Sprint(v.Big[19])
	return a, a.xerror()
}
func (v byValue) ValueNamed(a *shapeArgs) (namedPointer, Xerror) {
	a.Text += v.Tag
	return a, a.xerror()
}
func (v byValue) ValueString(a *shapeArgs) (string, Xerror) { return v.Tag + a.Text, a.xerror() }

// byPointer is embedded by pointer, so that wrappers follow it.
type byPointer struct{ Tag string }

func (p *byPointer) PromotedPointer(a *shapeArgs) (*string, Xerror) {
	p.Tag += a.Text
	return &p.Tag, a.xerror()
}

type shapes struct {
	_ [3]byte
	byValue
	*byPointer
	Calls int
}

func (s *shapes) Pointer(a *shapeArgs) (*shapeArgs, Xerror)     { s.Calls++; return a, a.xerror() }
func (s *shapes) Fresh(a *shapeArgs) (*int, Xerror)             { n := a.N + 1; return &n, a.xerror() }
func (s *shapes) Itself(a *shapeArgs) (*shapes, Xerror)         { return s, a.xerror() }
func (s *shapes) Named(a *shapeArgs) (namedPointer, Xerror)     { return a, a.xerror() }
func (s *shapes) NilPointer(a *shapeArgs) (*shapeArgs, Xerror)  { return nil, a.xerror() }
func (s *shapes) NilNamed(a *shapeArgs) (namedPointer, Xerror)  { return nil, a.xerror() }
func (s *shapes) PointerToPointer(a *shapeArgs) (**int, Xerror) { return &a.Keep, a.xerror() }
func (s *shapes) Struct(a *shapeArgs) (shapeArgs, Xerror)       { return *a, a.xerror() }
func (s *shapes) OnePointer(a *shapeArgs) (struct{ P *int }, Xerror) {
	return struct{ P *int }{a.Keep}, a.xerror()
}
func (s *shapes) Empty(a *shapeArgs) (struct{}, Xerror) { return struct{}{}, a.xerror() }
func (s *shapes) String(a *shapeArgs) (string, Xerror)  { return a.Text + "!", a.xerror() }
func (s *shapes) Int(a *shapeArgs) (int, Xerror)        { return a.N + s.Calls, a.xerror() }
func (s *shapes) Float(a *shapeArgs) (float64, Xerror)  { return float64(a.N) / 2, a.xerror() }
func (s *shapes) Map(a *shapeArgs) (map[string]int, Xerror) {
	return map[string]int{a.Text: a.N}, a.xerror()
}
func (s *shapes) Slice(a *shapeArgs) ([]*int, Xerror)         { return []*int{a.Keep, nil}, a.xerror() }
func (s *shapes) Array(a *shapeArgs) ([3]int, Xerror)         { return [3]int{a.N, 2, 3}, a.xerror() }
func (s *shapes) PointerArray(a *shapeArgs) ([1]*int, Xerror) { return [1]*int{a.Keep}, a.xerror() }
func (s *shapes) Any(a *shapeArgs) (interface{}, Xerror)      { return a, a.xerror() }
func (s *shapes) NilAny(a *shapeArgs) (interface{}, Xerror)   { return nil, a.xerror() }

//lint:ignore ST1008 a reply may be of any type
func (s *shapes) Error(a *shapeArgs) (error, Xerror)             { return errors.New(a.Text), a.xerror() }
func (s *shapes) TypedNilXerror(*shapeArgs) (*shapeArgs, Xerror) { return nil, (*xerror)(nil) }
func (s *shapes) TypedNilXerrorValue(*shapeArgs) (int, Xerror)   { return 0, (*xerror)(nil) }
func (s *shapes) Chan(a *shapeArgs) (chan int, Xerror)           { return nil, a.xerror() }
func (s *shapes) NilFunc(a *shapeArgs) (func() int, Xerror)      { return nil, a.xerror() }
func (s *shapes) Complex(a *shapeArgs) (complex128, Xerror) {
	return complex(float64(a.N), 1), a.xerror()
}
func (s *shapes) Bool(a *shapeArgs) (bool, Xerror) { return a.Fail, a.xerror() }

// callBoth calls a method of a pointer's as it is called for a route and by
// reflection, with a receiver and an argument of its own each.
func callBoth(m reflect.Method, ctrl func() interface{}, arg func() interface{}) (got, want [2]interface{}) {
	reply, x := methodCaller(m, true)(reflect.ValueOf(ctrl()), reflect.ValueOf(arg()))
	got = [2]interface{}{reply, x}
	out := m.Func.Call([]reflect.Value{reflect.ValueOf(ctrl()), reflect.ValueOf(arg())})
	x, _ = out[1].Interface().(Xerror)
	return got, [2]interface{}{out[0].Interface(), x}
}

// Methods of all shapes return through the short way what they do through
// reflection: the same dynamic type, the same value, and the same error.
func TestMethodCallerReturnsWhatReflectionDoes(t *testing.T) {
	ctrl := func() interface{} {
		return &shapes{byValue: byValue{Big: [20]int{19: 42}, Tag: "value "},
			byPointer: &byPointer{"pointer "}, Calls: 5}
	}
	typ := reflect.TypeFor[*shapes]()
	require.Equal(t, 30, typ.NumMethod())
	for i := range typ.NumMethod() {
		m := typ.Method(i)
		for _, fail := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/fail=%v", m.Name, fail), func(t *testing.T) {
				keep := 7
				arg := func() interface{} {
					return &shapeArgs{N: 1001, Fail: fail, Text: "text",
						Keep: &keep}
				}
				got, want := callBoth(m, ctrl, arg)
				require.Equal(t, reflect.TypeOf(want[0]), reflect.TypeOf(got[0]))
				require.Equal(t, want, got)
				if m.Type.Out(0).Kind() != reflect.Interface {
					require.Equal(t, m.Type.Out(0), reflect.TypeOf(got[0]))
				}
				if fail && m.Name != "TypedNilXerror" && m.Name != "TypedNilXerrorValue" {
					require.Equal(t, "1001 text", got[1].(Xerror).Error()[:9])
				}
			})
		}
	}
}

// Pointers come through as the same pointers, and later calls do not change what
// earlier ones have returned.
func TestMethodCallerKeepsIdentity(t *testing.T) {
	s := new(shapes)
	method := func(name string) func(ctrl, arg reflect.Value) (interface{}, Xerror) {
		m, ok := reflect.TypeOf(s).MethodByName(name)
		require.True(t, ok)
		return methodCaller(m, true)
	}
	a, b := new(shapeArgs), new(shapeArgs)
	for name, want := range map[string]func(*shapeArgs) interface{}{
		"Pointer": func(a *shapeArgs) interface{} { return a },
		"Named":   func(a *shapeArgs) interface{} { return namedPointer(a) },
		"Itself":  func(*shapeArgs) interface{} { return s },
	} {
		call := method(name)
		first, _ := call(reflect.ValueOf(s), reflect.ValueOf(a))
		second, _ := call(reflect.ValueOf(s), reflect.ValueOf(b))
		require.True(t, first == want(a), name) // the interfaces: type and pointer
		require.True(t, second == want(b), name)
	}
	require.Equal(t, 2, s.Calls, "the receiver is not a copy")
	reply, x := method("NilNamed")(reflect.ValueOf(s), reflect.ValueOf(a))
	require.True(t, reply == interface{}(namedPointer(nil)), "a nil pointer has its type")
	require.True(t, x == nil)
}

type funcShape struct{ n int }

func (f *funcShape) Func(a *shapeArgs) (func() int, Xerror) {
	return func() int { f.n++; return f.n + a.N }, nil
}

func TestMethodCallerReturnsFunctions(t *testing.T) {
	f := &funcShape{n: 10}
	reply, x := methodCaller(reflect.TypeOf(f).Method(0), true)(reflect.ValueOf(f),
		reflect.ValueOf(&shapeArgs{N: 100}))
	require.True(t, x == nil)
	require.Equal(t, 111, reply.(func() int)())
	require.Equal(t, 112, reply.(func() int)())
}

type panicShape struct{}

func (*panicShape) Pointer(a *shapeArgs) (*int, Xerror) { panic(a) }
func (*panicShape) Value(a *shapeArgs) (int, Xerror)    { panic(a) }

type panicPushShape struct{}

func (panicPushShape) Push(a *shapeArgs) { panic(a) }

func TestMethodCallerLetsPanicsThrough(t *testing.T) {
	for _, c := range []struct {
		ctrl interface{}
		pull bool
	}{{new(panicShape), true}, {new(panicPushShape), false}} {
		typ := reflect.TypeOf(c.ctrl)
		for i := range typ.NumMethod() {
			a := new(shapeArgs)
			call := methodCaller(typ.Method(i), c.pull)
			require.PanicsWithValue(t, a, func() { call(reflect.ValueOf(c.ctrl), reflect.ValueOf(a)) },
				typ.Method(i).Name)
		}
	}
}

type pushShape struct {
	big [10]int
	got *[]string
}

func (p *pushShape) Pointer(a *shapeArgs) { *p.got = append(*p.got, "pointer "+a.Text) }
func (p pushShape) Value(a *shapeArgs) {
	*p.got = append(*p.got, fmt.Sprint("value ", a.Text, p.big[9]))
}
func (p *pushShape) Words(a *[]string) { *p.got = append(*p.got, *a...) }

func TestMethodCallerOfPushes(t *testing.T) {
	var got []string
	p := &pushShape{got: &got}
	p.big[9] = 9
	for name, arg := range map[string]interface{}{"Pointer": &shapeArgs{Text: "a"},
		"Value": &shapeArgs{Text: "b"}, "Words": &[]string{"c", "d"}} {
		m, _ := reflect.TypeOf(p).MethodByName(name)
		reply, x := methodCaller(m, false)(reflect.ValueOf(p), reflect.ValueOf(arg))
		require.True(t, reply == nil && x == nil, name)
	}
	require.ElementsMatch(t, []string{"pointer a", "value b9", "c", "d"}, got)
}

type gcShape struct{ text []byte }

type gcArgs struct {
	text []byte
	deep int
	big  [1 << 14]int
}

// Work uses its receiver and its argument only after the collector has run and
// the stack has moved.
func (g *gcShape) Work(a *gcArgs) (*gcArgs, Xerror) {
	runtime.GC()
	litter()
	deep := grow(a.deep)
	reply := &gcArgs{text: append(append([]byte(nil), g.text...), a.text...), deep: deep}
	reply.big[1<<14-1] = a.big[1<<14-1]
	runtime.GC()
	litter()
	return reply, NewXerror(int32(a.deep), string(g.text))
}

// Push is Work for pushes; the reply is left in what the argument points to.
func (g *gcShape) Push(a *gcArgs) {
	runtime.GC()
	litter()
	grow(a.deep)
	a.text = append(a.text, g.text...)
}

var littered [][]byte

// litter allocates and drops memory like that of the arguments.
func litter() {
	littered = nil
	for range 100 {
		b := make([]byte, 16)
		for i := range b {
			b[i] = 0xAA
		}
		littered = append(littered, b)
	}
}

// grow recurses so deep that the stack is copied.
func grow(n int) int {
	var room [200]int
	if n == 0 {
		return room[0]
	}
	room[n%200] = n
	return 1 + grow(n-1) + room[n%200] - n
}

// What the method has only through the short way's bare pointers stays alive
// while it runs, and so does what it returns.
func TestMethodCallerKeepsMemoryAlive(t *testing.T) {
	typ := reflect.TypeFor[*gcShape]()
	work, _ := typ.MethodByName("Work")
	push, _ := typ.MethodByName("Push")
	pull, pushed := methodCaller(work, true), methodCaller(push, false)
	for i := range 40 {
		func() {
			arg := &gcArgs{text: fmt.Appendf(nil, "argument %d", i), deep: 10 * i}
			arg.big[1<<14-1] = i
			reply, x := pull(reflect.ValueOf(&gcShape{fmt.Appendf(nil, "receiver %d, ", i)}),
				reflect.ValueOf(arg))
			runtime.GC()
			litter()
			got := reply.(*gcArgs)
			require.Equal(t, fmt.Sprintf("receiver %d, argument %d", i, i), string(got.text))
			require.Equal(t, 10*i, got.deep)
			require.Equal(t, i, got.big[1<<14-1])
			require.Equal(t, fmt.Sprintf("%d receiver %d, ", 10*i, i), x.Error())
		}()
		text := fmt.Appendf(nil, "argument %d, ", i)
		arg := &gcArgs{text: text, deep: 10 * i}
		pushed(reflect.ValueOf(&gcShape{fmt.Appendf(nil, "receiver %d", i)}), reflect.ValueOf(arg))
		require.Equal(t, fmt.Sprintf("argument %d, receiver %d", i, i), string(arg.text))
	}
}

type valueCtl struct {
	PullCtx
	Greeting string
}

// Greet has a value receiver and a pointer as its reply.
func (v valueCtl) Greet(name *string) (*string, Xerror) {
	reply := v.Greeting + *name + v.Path()
	return &reply, nil
}

// ValueCtl has the methods of what it embeds.
type ValueCtl struct{ valueCtl }

// A controller may have methods with value receivers, of its own or promoted.
func TestControllersWithValueReceivers(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	srv.PullRouter.Reg(&valueCtl{Greeting: "hello "})
	srv.PullRouter.Group("g").Reg(&ValueCtl{valueCtl{Greeting: "good day "}})
	_, sess := connect(t, srv, cli, pipe.Options{})
	for uri, want := range map[string]string{
		"/value_ctl/greet":   "hello you/value_ctl/greet",
		"/g/value_ctl/greet": "good day you/g/value_ctl/greet",
	} {
		var got string
		cmd := sess.Pull(uri, "you", &got)
		require.Nil(t, cmd.Xerror, "%s: %v", uri, cmd.Xerror)
		require.Equal(t, want, got)
	}
}
