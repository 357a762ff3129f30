package tp

import (
	"context"
	"fmt"
	"reflect"
	"strings"
)

// Call pulls from the URI and returns the reply, of a type that the compiler knows: a
// value, or a pointer, to a protobuf message of either API for example. It is
// [Session.PullContext] otherwise; the error is nil or an [Xerror].
func Call[R any](ctx context.Context, by Caller, uri string, args interface{},
	setting ...PacketSetting) (R, error) {
	var reply R
	into := interface{}(&reply)
	if m := newMessage[R](); m != nil { // the codec decodes into the message itself
		reply, into = m.(R), m
	}
	if x := pullBy(ctx, by, uri, args, into, setting).Xerror; x != nil {
		var none R
		return none, x
	}
	return reply, nil
}

// Method is a route for pulls with the types of its argument and its reply, one definition for
// both sides: the side that serves it gives it to its router with Handle, and the other pulls
// with Call. It is made once, by [NewMethod], usually as a variable of a package that both
// programs import, and used often, on any session and from many goroutines. For protobuf
// messages A and R are pointers.
type Method[A, R any] struct {
	uri      string
	settings []PacketSetting
}

// NewMethod makes a Method of the URI; the settings are those of each call.
func NewMethod[A, R any](uri string, setting ...PacketSetting) Method[A, R] {
	if t := reflect.TypeFor[R](); t.Kind() == reflect.Interface && t.NumMethod() > 0 {
		panic("tp: NewMethod: a reply cannot be decoded into " + t.String() + ".")
	}
	return Method[A, R]{uri: uri, settings: setting}
}

// Uri returns the URI.
func (m Method[A, R]) Uri() string { return m.uri }

// Handle registers what answers the method's pulls, as [HandlePull] does. The router may be
// that of a group which the method's URI is in: the URI says where it is, whole. It panics if
// the URI is not in the group, cannot be a route's, or is taken.
func (m Method[A, R]) Handle(r *PullRouter, fn func(ctx PullCtx, args *A) (R, Xerror), plugins ...Plugin) {
	HandlePull(r, inGroup("Method", r.prefix, m.uri), fn, plugins...)
}

// Call pulls, as the function [Call] does, with further settings for this call alone.
func (m Method[A, R]) Call(ctx context.Context, by Caller, args A, setting ...PacketSetting) (R, error) {
	return Call[R](ctx, by, m.uri, args, joined(m.settings, setting)...)
}

// Push pushes to the method's URI, where a route for pushes must be; see [Note].
func (m Method[A, R]) Push(ctx context.Context, by Caller, args A, setting ...PacketSetting) error {
	return pushTo(ctx, by, m.uri, args, joined(m.settings, setting))
}

// Note is a route for pushes with the type of its argument, one definition for both sides:
// the side that takes it gives it to its router with Handle, and the other pushes with Push.
// For the rest see [Method]; it is made by [NewNote].
type Note[A any] struct {
	uri      string
	settings []PacketSetting
}

// NewNote makes a Note of the URI; the settings are those of each push.
func NewNote[A any](uri string, setting ...PacketSetting) Note[A] {
	return Note[A]{uri: uri, settings: setting}
}

// Uri returns the URI.
func (n Note[A]) Uri() string { return n.uri }

// Handle registers what takes the note's pushes, as [HandlePush] does; see [Method.Handle].
func (n Note[A]) Handle(r *PushRouter, fn func(ctx PushCtx, args *A), plugins ...Plugin) {
	HandlePush(r, inGroup("Note", r.prefix, n.uri), fn, plugins...)
}

// Push pushes, as [Session.PushContext] does, with further settings for this push alone. The
// error is nil or an [Xerror].
func (n Note[A]) Push(ctx context.Context, by Caller, args A, setting ...PacketSetting) error {
	return pushTo(ctx, by, n.uri, args, joined(n.settings, setting))
}

// PushGroup pushes to the members of the group, as [Group.Push] does.
func (n Note[A]) PushGroup(g *Group, args A, setting ...PacketSetting) Delivery {
	return g.Push(n.uri, args, joined(n.settings, setting)...)
}

func pushTo(ctx context.Context, by Caller, uri string, args interface{},
	settings []PacketSetting) error {
	if x := pushBy(ctx, by, uri, args, settings); x != nil {
		return x
	}
	return nil
}

// joined returns the settings of a definition followed by those of one call.
func joined(all, one []PacketSetting) []PacketSetting {
	if len(one) == 0 {
		return all
	}
	return append(all[:len(all):len(all)], one...)
}

// inGroup returns the URI without the path of the group that it is in.
func inGroup(what, prefix, uri string) string {
	if !strings.HasPrefix(uri, "/") {
		panic(fmt.Sprintf("tp: %s.Handle: %q does not begin with a slash.", what, uri))
	}
	under := strings.TrimSuffix(prefix, "/") + "/"
	if !strings.HasPrefix(uri, under) {
		panic(fmt.Sprintf("tp: %s.Handle: %q is not in the router's group %q; expected the router of a "+
			"group that the URI begins with.", what, uri, prefix))
	}
	return uri[len(under)-1:]
}
