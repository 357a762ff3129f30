// Package codectest checks a codec against the rules of package codec, so that
// whoever writes one need not find them out on a live connection:
//
//	func TestCodec(t *testing.T) {
//		codectest.Run(t, myCodec{},
//			codectest.Of(Point{X: 1, Y: -2}),
//			codectest.Of(&Order{Id: 7}),
//		)
//	}
//
// Run it with -race: two of the rules are about use from many goroutines.
package codectest

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/henrylee2cn/teleport/codec"
)

// A Sample is one value for the codec to carry there and back. [Of] makes the
// usual one.
type Sample struct {
	// Name tells the sample from the others in messages; empty stands for Value's
	// type.
	Name string
	// Value is encoded. It is never written to, and it is encoded from several
	// goroutines at once.
	Value interface{}
	// New returns a pointer to an empty value for decoding into, a fresh one each
	// time. It must not be nil.
	New func() interface{}
	// Equal reports whether got, a pointer from New that was decoded into, holds
	// what the codec is to make of Value. nil compares protobuf messages with
	// proto.Equal and all else with reflect.DeepEqual, got itself or what it
	// points to.
	Equal func(value, got interface{}) bool
}

// Of returns the sample of a value that decodes into its own type: v is encoded
// as it is and decoded into a new T, where v is a T or a *T. It panics when v is
// nil.
func Of(v interface{}) Sample {
	t := reflect.TypeOf(v)
	if t == nil {
		panic("codectest: Of a nil interface, which has no type to decode into.")
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return Sample{Value: v, New: func() interface{} { return reflect.New(t).Interface() }}
}

// Run checks c with every sample, each rule in a subtest of its own. The more
// kinds of values the samples hold, the more it finds; at least one is needed.
//
// It checks that id and name are set and stay the same; that what Marshal made,
// Unmarshal reads; that Marshal gives memory away and Unmarshal keeps none; that
// a [codec.Appender] writes behind what is there, and the same as Marshal; that
// broken input gives an error or some value but never a panic; and that all of
// it may be done at once.
func Run(t *testing.T, c codec.Codec, samples ...Sample) {
	t.Helper()
	if err := usable(c, samples); err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) {
			for _, err := range rule.check(c, samples) {
				t.Error(err)
			}
		})
	}
}

func usable(c codec.Codec, samples []Sample) error {
	if c == nil {
		return errors.New("codectest: the codec is nil")
	}
	if len(samples) == 0 {
		return errors.New("codectest: no samples, nothing to check the codec with")
	}
	for i, s := range samples {
		if s.New == nil {
			return fmt.Errorf("codectest: sample %d (%s) has no New", i, s.name())
		}
	}
	return nil
}

func (s Sample) name() string {
	if s.Name != "" {
		return s.Name
	}
	return fmt.Sprintf("%T", s.Value)
}

// holds returns an error unless got holds the sample's value.
func (s Sample) holds(got interface{}) error {
	equal := s.Equal
	if equal == nil {
		equal = defaultEqual
	}
	if equal(s.Value, got) {
		return nil
	}
	return fmt.Errorf("%s came back as %s", show(s.Value), show(got))
}

func defaultEqual(value, got interface{}) bool {
	if a, b := message(value), message(got); a != nil && b != nil {
		return proto.Equal(a, b)
	}
	if reflect.DeepEqual(value, got) {
		return true
	}
	p := reflect.ValueOf(got)
	return p.Kind() == reflect.Pointer && !p.IsNil() && reflect.DeepEqual(value, p.Elem().Interface())
}

// message returns v as a protobuf message, nil if it is none.
func message(v interface{}) proto.Message {
	switch m := v.(type) {
	case proto.Message:
		return m
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m)
	}
	return nil
}

// show prints a value, or what it points to, cut off where it becomes tedious.
func show(v interface{}) string {
	if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer && !p.IsNil() && message(v) == nil {
		v = p.Elem().Interface()
	}
	s := fmt.Sprintf("%T %+v", v, v)
	if len(s) > 200 {
		s = fmt.Sprintf("%s... (%d bytes)", s[:200], len(s))
	}
	return s
}
