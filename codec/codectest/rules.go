package codectest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/printable"
)

// A rule is one thing that a codec has to do. Its check returns what is wrong.
type rule struct {
	name  string
	check func(codec.Codec, []Sample) []error
}

var rules = []rule{
	{"identity", identity},
	{"round trip", each(roundTrip)},
	{"Marshal gives its memory away", each(marshalOwned)},
	{"AppendMarshal appends", each(appends)},
	{"AppendMarshal equals Marshal", each(appendEqualsMarshal)},
	{"Unmarshal keeps no data", each(keepsNoData)},
	{"broken input", each(brokenInput)},
	{"concurrent use", concurrentUse},
}

// each makes a rule of a check of one sample. The message names the sample.
func each(check func(codec.Codec, Sample) error) func(codec.Codec, []Sample) []error {
	return func(c codec.Codec, samples []Sample) (errs []error) {
		for _, s := range samples {
			if err := check(c, s); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", s.name(), err))
			}
		}
		return errs
	}
}

func marshal(c codec.Codec, v interface{}) (b []byte, err error) {
	err = errPanicNil
	defer outcome("Marshal", &err)
	return c.Marshal(v)
}

func appendMarshal(a codec.Appender, dst []byte, v interface{}) (b []byte, err error) {
	err = errPanicNil
	defer outcome("AppendMarshal", &err)
	return a.AppendMarshal(dst, v)
}

func unmarshal(c codec.Codec, data []byte, v interface{}) (err error) {
	err = errPanicNil
	defer outcome("Unmarshal", &err)
	return c.Unmarshal(data, v)
}

// errPanicNil is left where nothing has returned and recover returns nil.
var errPanicNil = errors.New("panicked with nil, or ended the goroutine")

// outcome makes *err say which method failed, by an error or by a panic.
func outcome(method string, err *error) {
	if p := recover(); p != nil {
		*err = &panicError{method, p}
	} else if *err != nil {
		*err = fmt.Errorf("%s: %w", method, *err)
	}
}

// panicError is the error for a panic of the codec.
type panicError struct {
	method string
	value  interface{}
}

func (e *panicError) Error() string {
	return fmt.Sprintf("%s panicked: %s", e.method, printable.Value(e.value, 1<<10))
}

// decodes returns an error unless data decodes into the sample's value.
func decodes(c codec.Codec, data []byte, s Sample) error {
	got := s.New()
	if err := unmarshal(c, data, got); err != nil {
		return err
	}
	return s.holds(got)
}

func identity(c codec.Codec, _ []Sample) (errs []error) {
	id, name := c.Id(), c.Name()
	if id == 0 {
		errs = append(errs, errors.New("id 0 is never a codec"))
	}
	if name == "" {
		errs = append(errs, errors.New("the name is empty"))
	}
	if again := c.Id(); again != id {
		errs = append(errs, fmt.Errorf("the id was %d and is %d now", id, again))
	}
	if again := c.Name(); again != name {
		errs = append(errs, fmt.Errorf("the name was %q and is %q now", name, again))
	}
	return errs
}

func roundTrip(c codec.Codec, s Sample) error {
	data, err := marshal(c, s.Value)
	if err != nil {
		return err
	}
	return decodes(c, data, s)
}

// marshalOwned writes over one result and looks at another.
func marshalOwned(c codec.Codec, s Sample) error {
	mine, err := marshal(c, s.Value)
	if err != nil {
		return err
	}
	other, err := marshal(c, s.Value)
	if err != nil {
		return err
	}
	overwrite(mine[:cap(mine)])
	if err := decodes(c, other, s); err != nil {
		return fmt.Errorf("after writing over the result of another Marshal: %w", err)
	}
	if err := roundTrip(c, s); err != nil {
		return fmt.Errorf("after writing over the result of an earlier Marshal: %w", err)
	}
	return nil
}

// appends looks at what is in front of the encoding: with no room behind it, with
// room for a part, and with room for all.
func appends(c codec.Codec, s Sample) error {
	a, ok := c.(codec.Appender)
	if !ok {
		return nil
	}
	const front = "bytes that are there"
	for _, room := range []int{0, 1, 64 << 10} {
		dst := append(make([]byte, 0, len(front)+room), front...)
		out, err := appendMarshal(a, dst, s.Value)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(out, []byte(front)) {
			return fmt.Errorf("AppendMarshal behind %q, with room for %d bytes more, returned %.100q",
				front, room, out)
		}
		if string(dst) != front {
			return fmt.Errorf("AppendMarshal, with room for %d bytes, changed the bytes in front to %q",
				room, dst)
		}
		if err := decodes(c, out[len(front):], s); err != nil {
			return fmt.Errorf("what AppendMarshal appended, with room for %d bytes: %w", room, err)
		}
	}
	return nil
}

// appendEqualsMarshal compares bytes. An encoding that differs from one time to
// the next, as with the keys of a map, cannot be compared so.
func appendEqualsMarshal(c codec.Codec, s Sample) error {
	a, ok := c.(codec.Appender)
	if !ok {
		return nil
	}
	want, err := marshal(c, s.Value)
	if err != nil {
		return err
	}
	for range 50 {
		again, err := marshal(c, s.Value)
		if err != nil {
			return err
		}
		if !bytes.Equal(want, again) {
			return nil
		}
	}
	got, err := appendMarshal(a, nil, s.Value)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("AppendMarshal made %.100q of it and Marshal %.100q", got, want)
	}
	return nil
}

func keepsNoData(c codec.Codec, s Sample) error {
	data, err := marshal(c, s.Value)
	if err != nil {
		return err
	}
	got := s.New()
	if err := unmarshal(c, data, got); err != nil {
		return err
	}
	if err := s.holds(got); err != nil {
		return err
	}
	overwrite(data)
	if err := s.holds(got); err != nil {
		return fmt.Errorf("after writing over the data: %w", err)
	}
	return nil
}

// overwrite makes b what no encoding is likely to be.
func overwrite(b []byte) {
	for i := range b {
		b[i] = 0xA5
	}
}

// brokenInput decodes what is left of an encoding that was cut off, was changed
// in one place, or never was one. Any error will do, and any value too.
func brokenInput(c codec.Codec, s Sample) error {
	data, err := marshal(c, s.Value)
	if err != nil {
		return err
	}
	try := func(what string, data []byte) error {
		err := unmarshal(c, data, s.New())
		if p, ok := err.(*panicError); ok {
			return fmt.Errorf("%s: %w; the data was %.100q", what, p, data)
		}
		return nil
	}
	const most = 1000
	step := 1 + len(data)/most
	for n := 0; n < len(data); n += step {
		cut := bytes.Clone(data[:n])
		if err := try(fmt.Sprintf("cut off after %d of %d bytes", n, len(data)), cut); err != nil {
			return err
		}
		for _, x := range []byte{0x01, 0x80, 0xFF} {
			changed := bytes.Clone(data)
			changed[n] ^= x
			if err := try(fmt.Sprintf("byte %d changed", n), changed); err != nil {
				return err
			}
		}
	}
	if err := try("more behind it", append(bytes.Clone(data), data...)); err != nil {
		return err
	}
	if err := try("nil", nil); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		noise := make([]byte, random.IntN(40))
		for i := range noise {
			noise[i] = byte(random.Uint32())
		}
		if err := try("random bytes", noise); err != nil {
			return err
		}
	}
	return nil
}

// concurrentUse carries all samples on several goroutines.
func concurrentUse(c codec.Codec, samples []Sample) []error {
	const goroutines, rounds = 8, 40
	found := make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range rounds {
				s := samples[(g+i)%len(samples)]
				if err := roundTripBoth(c, s); err != nil {
					found[g] = fmt.Errorf("%s, on one of %d goroutines: %w", s.name(), goroutines, err)
					return
				}
			}
		})
	}
	wg.Wait()
	var errs []error
	for _, err := range found {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func roundTripBoth(c codec.Codec, s Sample) error {
	if err := roundTrip(c, s); err != nil {
		return err
	}
	a, ok := c.(codec.Appender)
	if !ok {
		return nil
	}
	data, err := appendMarshal(a, nil, s.Value)
	if err != nil {
		return err
	}
	return decodes(c, data, s)
}
