package tp

import (
	"context"
	"reflect"

	"google.golang.org/protobuf/proto"
)

// Call pulls from the URI and returns the reply, of a type that the compiler knows: a
// value, or a pointer, to a protobuf message for example. It is [Session.PullContext]
// otherwise; the error is nil or an [Xerror].
func Call[R any](ctx context.Context, sess *Session, uri string, args interface{}, setting ...PacketSetting) (R, error) {
	var reply R
	into := interface{}(&reply)
	if m, ok := interface{}(reply).(proto.Message); ok { // whose codec wants the message itself
		m = m.ProtoReflect().New().Interface()
		reply, into = m.(R), m
	}
	if x := sess.PullContext(ctx, uri, args, into, setting...).Xerror; x != nil {
		var none R
		return none, x
	}
	return reply, nil
}

// Method is a method of the other side's, with the types of its argument and its reply.
// It is made once, by [NewMethod], and called often, on any session and from many
// goroutines.
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

// Call pulls, as the function [Call] does.
func (m Method[A, R]) Call(ctx context.Context, sess *Session, args A) (R, error) {
	return Call[R](ctx, sess, m.uri, args, m.settings...)
}

// Push pushes to the method's URI.
func (m Method[A, R]) Push(ctx context.Context, sess *Session, args A) error {
	if x := sess.PushContext(ctx, m.uri, args, m.settings...); x != nil {
		return x
	}
	return nil
}
