package tp

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"unsafe"

	"github.com/henrylee2cn/goutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

var (
	typePullCtx = reflect.TypeFor[PullCtx]()
	typePushCtx = reflect.TypeFor[PushCtx]()
	typeXerror  = reflect.TypeFor[Xerror]()
)

// controllerHandlers makes the routes of a controller. It panics with a sentence
// that names what does not fit.
func controllerHandlers(prefix string, ctrl interface{}, pull bool, chain *pluginChain) []*Handler {
	ctxType, ctxName, kind := typePushCtx, "tp.PushCtx", "Push"
	if pull {
		ctxType, ctxName, kind = typePullCtx, "tp.PullCtx", "Pull"
	}
	ptr := reflect.TypeOf(ctrl)
	if ptr == nil || ptr.Kind() != reflect.Pointer || ptr.Elem().Kind() != reflect.Struct ||
		reflect.ValueOf(ctrl).IsNil() {
		panic(fmt.Sprintf("tp: Reg(%T): a controller is a non-nil pointer to a struct that embeds %s.",
			ctrl, ctxName))
	}
	elem := ptr.Elem()
	if elem.Name() == "" {
		panic(fmt.Sprintf("tp: Reg(%T): the controller's type has no name to make a path of.", ctrl))
	}
	fields, err := embeddedContexts(elem)
	if err != nil {
		panic(fmt.Sprintf("tp: Reg(%T): %v.", ctrl, err))
	}
	embeds := func(t reflect.Type) bool {
		return slices.ContainsFunc(fields, func(f ctxField) bool { return f.typ == t })
	}
	if other, router := typePullCtx, "PullRouter"; !embeds(ctxType) &&
		(embeds(typePullCtx) || embeds(typePushCtx)) {
		if pull {
			other, router = typePushCtx, "PushRouter"
		}
		panic(fmt.Sprintf("tp: Reg(%T): the struct embeds %v and belongs to a %s; here it must embed %s.",
			ctrl, other, router, ctxName))
	}
	if !embeds(ctxType) {
		panic(fmt.Sprintf("tp: Reg(%T): the struct must embed %s, as a field without a name, directly or "+
			"in an embedded struct.", ctrl, ctxName))
	}
	if at, lock := findLock(elem); lock != nil {
		panic(fmt.Sprintf("tp: Reg(%T): %s%s is a %v, and each call gets a copy of the controller, of "+
			"the lock too; put what the calls share behind a pointer, in a field of type *State for "+
			"example, or use Handle%s with a closure.",
			ctrl, elem.Name(), at, lock, kind))
	}
	// Each call gets a copy of the controller as it is now: with the values that the program has put into
	// its fields, and without the changes of other calls.
	proto := reflect.New(elem)
	proto.Elem().Set(reflect.ValueOf(ctrl).Elem())

	var handlers []*Handler
	for i := range ptr.NumMethod() {
		m := ptr.Method(i)
		if slices.ContainsFunc(fields, func(f ctxField) bool { return promoted(m, f.typ) }) {
			continue
		}
		handlers = append(handlers, methodHandler(prefix, ptr, proto, m, fields, pull, chain))
	}
	if len(handlers) == 0 {
		panic(fmt.Sprintf("tp: Reg(%T): the controller has no exported method to serve.", ctrl))
	}
	return handlers
}

// promoted reports whether the method is one of the context interface that the controller embeds.
func promoted(m reflect.Method, ctx reflect.Type) bool {
	own, ok := ctx.MethodByName(m.Name)
	if !ok || own.Type.NumIn() != m.Type.NumIn()-1 || own.Type.NumOut() != m.Type.NumOut() {
		return false
	}
	for i := range own.Type.NumIn() {
		if own.Type.In(i) != m.Type.In(i+1) {
			return false
		}
	}
	for i := range own.Type.NumOut() {
		if own.Type.Out(i) != m.Type.Out(i) {
			return false
		}
	}
	return true
}

func methodHandler(prefix string, ptr reflect.Type, proto reflect.Value, m reflect.Method,
	fields []ctxField, pull bool, chain *pluginChain) *Handler {
	want := "func(*Args)"
	if pull {
		want = "func(*Args) (Reply, tp.Xerror)"
	}
	misfit := func(what string) {
		panic(fmt.Sprintf("tp: Reg(%v): method %s %s; expected %s.", ptr, m.Name, what, want))
	}
	t := m.Type
	_, shown, _ := strings.Cut(methodSignature(m), "(") // without the receiver, as a program has it
	shown = "func(" + shown
	if t.NumIn() != 2 || t.In(1).Kind() != reflect.Pointer || t.IsVariadic() {
		misfit(fmt.Sprintf("has the type %s, which does not take exactly one pointer", shown))
	}
	if !goutil.IsExportedOrBuiltinType(t.In(1)) {
		misfit(fmt.Sprintf("takes %v, a type that is not exported", t.In(1)))
	}
	h := &Handler{
		path:    path.Join("/", prefix, goutil.SnakeString(ptr.Elem().Name()), goutil.SnakeString(m.Name)),
		pull:    pull,
		argType: t.In(1).Elem(),
		chain:   chain,
		code:    m.Func.Pointer(),
	}
	if pull {
		if t.NumOut() != 2 || t.Out(1) != typeXerror {
			misfit(fmt.Sprintf("has the type %s, which does not return a reply and a tp.Xerror", shown))
		}
		if !goutil.IsExportedOrBuiltinType(t.Out(0)) {
			misfit(fmt.Sprintf("returns %v, a type that is not exported", t.Out(0)))
		}
		h.replyType = t.Out(0)
	} else if t.NumOut() != 0 {
		misfit(fmt.Sprintf("has the type %s, which returns something", shown))
	}
	h.newArg = func() interface{} { return reflect.New(h.argType).Interface() }
	fn, elem := methodCaller(m, pull), ptr.Elem()
	h.call = func(c *call, arg interface{}) (interface{}, Xerror) {
		ctrl := reflect.New(elem)
		ctrl.Elem().Set(proto.Elem())
		for i := range fields {
			fields[i].set(ctrl.UnsafePointer(), c)
		}
		return fn(ctrl, reflect.ValueOf(arg))
	}
	return h
}

// methodCaller returns a function that calls the method of a pointer type, which
// methodHandler has found to fit, with the receiver and the argument.
//
// If the reply is a pointer, as most are, the function does not use reflect.Call, which takes several times
// as long as the rest of a call. How arguments are passed depends on their memory layout alone, so a method
// with such a reply can be called as a func(pointer, pointer) (pointer, Xerror), whatever the pointers point
// to.
func methodCaller(m reflect.Method, pull bool) func(ctrl, arg reflect.Value) (interface{}, Xerror) {
	code := m.Func.UnsafePointer() // a func value is a pointer to a word that holds this
	value := unsafe.Pointer(&code)
	if !pull {
		call := *(*func(ctrl, arg unsafe.Pointer))(unsafe.Pointer(&value))
		return func(ctrl, arg reflect.Value) (interface{}, Xerror) {
			call(ctrl.UnsafePointer(), arg.UnsafePointer())
			return nil, nil
		}
	}
	replyType := m.Type.Out(0)
	if replyType.Kind() == reflect.Pointer {
		call := *(*func(ctrl, arg unsafe.Pointer) (unsafe.Pointer, Xerror))(unsafe.Pointer(&value))
		none := reflect.Zero(replyType).Interface() // an interface's words are the type and the pointer
		return func(ctrl, arg reflect.Value) (interface{}, Xerror) {
			reply := none
			p, x := call(ctrl.UnsafePointer(), arg.UnsafePointer())
			(*[2]unsafe.Pointer)(unsafe.Pointer(&reply))[1] = p
			return reply, x
		}
	}
	fn := m.Func
	return func(ctrl, arg reflect.Value) (interface{}, Xerror) {
		out := fn.Call([]reflect.Value{ctrl, arg})
		x, _ := out[1].Interface().(Xerror)
		return out[0].Interface(), x
	}
}

// Reg registers every exported method of a controller, which is a pointer to a
// struct that embeds [PullCtx]. Each method must be a
// func(*Args) (Reply, [Xerror]). Each call gets a copy of the controller as it
// was when it was registered, with the call's context in every PullCtx and PushCtx that
// the struct, or a struct embedded in it, embeds. What the calls share, with the lock that
// guards it, therefore stands behind a pointer:
//
//	type Rooms struct {
//		tp.PullCtx
//		state *State // has a sync.Mutex and a map
//	}
//
// It panics if something does not fit or a path is taken; if the controller holds a lock
// by value, one of package sync or sync/atomic or whatever go vet says must not be copied;
// and if an embedded pointer leads to a context, which all calls would share.
func (r *PullRouter) Reg(ctrl interface{}, plugins ...Plugin) {
	r.add(controllerHandlers(r.prefix, ctrl, true, r.with(fmt.Sprintf("Reg(%T)", ctrl), plugins)))
}

// Reg registers every exported method of a controller, which is a pointer to a
// struct that embeds [PushCtx]. Each method must be a func(*Args). For the rest
// see [PullRouter.Reg].
func (r *PushRouter) Reg(ctrl interface{}, plugins ...Plugin) {
	r.add(controllerHandlers(r.prefix, ctrl, false, r.with(fmt.Sprintf("Reg(%T)", ctrl), plugins)))
}

// HandlePull registers a function that answers pulls to the path, which stands
// behind that of the router's group: HandlePull(router.Group("a"), "/b", fn)
// serves /a/b. It is to [PullRouter.Reg] as a function is to a method: there is
// no controller, and the compiler checks the types. Args is decoded into a fresh
// A for each call; a nil Xerror means success and sends the reply. A is usually not a
// pointer; if A is a pointer to a protobuf message, args points to that pointer.
// It panics if
// the path cannot be a route's or is taken. It is safe for concurrent use.
func HandlePull[A, R any](r *PullRouter, path string, fn func(ctx PullCtx, args *A) (R, Xerror),
	plugins ...Plugin) {
	if fn == nil {
		panic(fmt.Sprintf("tp: HandlePull(%q): the function is nil.", path))
	}
	r.handle("HandlePull", path, plugins, &Handler{
		pull:      true,
		argType:   reflect.TypeFor[A](),
		replyType: reflect.TypeFor[R](),
		code:      codeOf(fn),
		newArg:    newArg[A](),
		target:    target[A](),
		call: func(c *call, arg interface{}) (interface{}, Xerror) {
			return fn(c, arg.(*A))
		},
	})
}

// HandlePush registers a function that takes pushes to the path, as [HandlePull]
// does for pulls.
func HandlePush[A any](r *PushRouter, path string, fn func(ctx PushCtx, args *A), plugins ...Plugin) {
	if fn == nil {
		panic(fmt.Sprintf("tp: HandlePush(%q): the function is nil.", path))
	}
	r.handle("HandlePush", path, plugins, &Handler{
		argType: reflect.TypeFor[A](),
		code:    codeOf(fn),
		newArg:  newArg[A](),
		target:  target[A](),
		call: func(c *call, arg interface{}) (interface{}, Xerror) {
			fn(c, arg.(*A))
			return nil, nil
		},
	})
}

// newArg returns a function that makes an argument. If A is a pointer to a protobuf message, the argument
// points to a new message already, because the codec decodes into the message itself.
func newArg[A any]() func() interface{} {
	if newMessage[A]() == nil {
		return func() interface{} { return new(A) }
	}
	return func() interface{} {
		arg := newMessage[A]().(A)
		return &arg
	}
}

// target returns Handler.target for arguments of type A.
func target[A any]() func(arg interface{}) interface{} {
	if newMessage[A]() == nil {
		return nil
	}
	return func(arg interface{}) interface{} { return *arg.(*A) }
}

// handle sets the path and the plugins of h, and registers it.
func (g *group) handle(caller, p string, plugins []Plugin, h *Handler) {
	if path.Join("/", p) == "/" {
		panic(fmt.Sprintf("tp: %s(%q): the path has no name in it.", caller, p))
	}
	h.path = joinPath(caller, g.prefix, p)
	h.chain = g.with(fmt.Sprintf("%s(%q)", caller, p), plugins)
	g.add([]*Handler{h})
}

// newMessage returns a new message if M is a pointer to a protobuf message, and nil otherwise.
func newMessage[M any]() interface{} {
	var none M
	switch m := interface{}(none).(type) {
	case proto.Message:
		return m.ProtoReflect().New().Interface()
	case protoadapt.MessageV1:
		if t := reflect.TypeFor[M](); t.Kind() == reflect.Pointer {
			return reflect.New(t.Elem()).Interface()
		}
	}
	return nil
}
