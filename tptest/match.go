package tptest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/stretchr/testify/assert"
	"google.golang.org/protobuf/proto"

	tp "github.com/henrylee2cn/teleport"
)

// TestingT is what assertions need of a test: a *testing.T has it.
type TestingT = assert.TestingT

// A Matcher says why a call is not the one that is looked for; nil if it is. Matchers can be functions of
// your own.
type Matcher func(c Call) error

// HasBody matches a call whose body, decoded into a value of want's type, equals want. Nil matches a call
// without a body.
func HasBody(want any) Matcher {
	return func(c Call) error {
		if want == nil {
			if len(c.body) == 0 && c.bodyError == nil {
				return nil
			}
			return errors.New("it has a body")
		}
		typ := reflect.TypeOf(want)
		into := reflect.New(typ)
		if typ.Kind() == reflect.Pointer { // decoded into what the pointer points to
			into.Elem().Set(reflect.New(typ.Elem()))
		}
		decodeInto := into.Interface()
		if typ.Kind() == reflect.Pointer {
			decodeInto = into.Elem().Interface()
		}
		if err := c.Decode(decodeInto); err != nil {
			return err
		}
		got := into.Elem().Interface()
		if w, ok := want.(proto.Message); ok {
			if g, ok := got.(proto.Message); ok && proto.Equal(w, g) {
				return nil
			}
		}
		if !assert.ObjectsAreEqual(want, got) {
			return fmt.Errorf("its body is %s, and %s was expected", show(got), show(want))
		}
		return nil
	}
}

// show prints a value, and not the address of one.
func show(v any) string {
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Pointer && !rv.IsNil() {
		return fmt.Sprintf("&%#v", rv.Elem().Interface())
	}
	return fmt.Sprintf("%#v", v)
}

// BodyIs matches a call whose body, decoded into a T, makes is return true.
func BodyIs[T any](is func(T) bool) Matcher {
	return func(c Call) error {
		v, err := BodyOf[T](c)
		if err == nil && !is(v) {
			err = fmt.Errorf("its body is %s", show(v))
		}
		return err
	}
}

// HasMeta matches a call that came with the pair of metadata.
func HasMeta(key, value string) Matcher {
	return func(c Call) error {
		if got, ok := c.Meta[key]; !ok || got != value {
			return fmt.Errorf("its metadata is %q, and %q: %q was expected", c.Meta, key, value)
		}
		return nil
	}
}

// HasQuery matches a call whose URI has the pair in its query.
func HasQuery(key, value string) Matcher {
	return func(c Call) error {
		if got, ok := c.Query[key]; !ok || len(got) == 0 || got[0] != value {
			return fmt.Errorf("its query is %q, and %s=%q was expected", c.Query.Encode(), key, value)
		}
		return nil
	}
}

// HasStatus matches a call that was answered with the code, [tp.StatusOK] for example.
func HasStatus(code int32) Matcher {
	return func(c Call) error {
		switch c.Code {
		case code:
			return nil
		case 0:
			return errors.New("it has no status yet")
		}
		return fmt.Errorf("its status is %d %s, and %d was expected", c.Code, c.Text, code)
	}
}

// CameBy matches a call that came by the session, Link.Server for example.
func CameBy(sess *tp.Session) Matcher {
	return func(c Call) error {
		if c.Session != sess {
			return errors.New("it came by another session")
		}
		return nil
	}
}

// AssertPulled fails the test unless a pull to the path has come for which all matchers match. It returns
// whether one has.
func (r *Recorder) AssertPulled(t TestingT, path string, matchers ...Matcher) bool {
	helper(t)
	return r.assert(t, Pull, path, atLeastOne, matchers)
}

// AssertPushed is AssertPulled for pushes. It does not wait, see [Recorder.AwaitPush].
func (r *Recorder) AssertPushed(t TestingT, path string, matchers ...Matcher) bool {
	helper(t)
	return r.assert(t, Push, path, atLeastOne, matchers)
}

// AssertStreamed is AssertPulled for streams.
func (r *Recorder) AssertStreamed(t TestingT, path string, matchers ...Matcher) bool {
	helper(t)
	return r.assert(t, Stream, path, atLeastOne, matchers)
}

// AssertNotPulled fails the test if a pull to the path has come for which all matchers match.
func (r *Recorder) AssertNotPulled(t TestingT, path string, matchers ...Matcher) bool {
	helper(t)
	return r.assert(t, Pull, path, 0, matchers)
}

// AssertNotPushed is AssertNotPulled for pushes. A push may still be on its way.
func (r *Recorder) AssertNotPushed(t TestingT, path string, matchers ...Matcher) bool {
	helper(t)
	return r.assert(t, Push, path, 0, matchers)
}

// AssertCount fails the test unless exactly so many calls of the kind to the path have come for which all
// matchers match.
func (r *Recorder) AssertCount(t TestingT, n int, kind Kind, path string, matchers ...Matcher) bool {
	helper(t)
	return r.assert(t, kind, path, n, matchers)
}

const atLeastOne = -1

// assert counts the calls that match. Want is how many there must be, or atLeastOne.
func (r *Recorder) assert(t TestingT, kind Kind, path string, want int, matchers []Matcher) bool {
	helper(t)
	for i, m := range matchers {
		if m == nil {
			return assert.Fail(t, fmt.Sprintf("tptest: matcher %d of %d is nil", i+1, len(matchers)))
		}
	}
	n, why := 0, ""
	calls := r.Received()
next:
	for _, c := range calls {
		if c.Kind != kind || c.Path != path {
			continue
		}
		for _, m := range matchers {
			if err := m(c); err != nil {
				why += fmt.Sprintf("\n\t%v: %v", c, err)
				continue next
			}
		}
		n++
	}
	if n == want || want == atLeastOne && n > 0 {
		return true
	}
	expected := fmt.Sprint(want)
	if want == atLeastOne {
		expected = "one"
	}
	what := fmt.Sprintf("tptest: %d of the %s of %s match; expected %s", n, plural(kind), path, expected)
	if why != "" {
		what += "\nnot matching:" + why
	} else {
		what += "\n" + list(calls)
	}
	return assert.Fail(t, what)
}

func plural(kind Kind) string {
	if kind == Push {
		return "pushes"
	}
	return strings.TrimSpace(string(kind)) + "s"
}

func helper(t TestingT) {
	if h, ok := t.(interface{ Helper() }); ok {
		h.Helper()
	}
}
