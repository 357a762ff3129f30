package tptest_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	if os.Getenv(failingTests) != "" { // they leave goroutines
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m)
}

// failed is a test that has ended by FailNow.
type failed struct{ text string }

// fakeT is a test that is expected to fail. Its cleanups run when run returns.
type fakeT struct {
	testing.TB
	ctx      context.Context
	cancel   context.CancelFunc
	name     string
	texts    []string
	fails    int
	cleanups []func()
}

// run runs f as a test, and then its cleanups, and returns what it has said, if it has failed.
func run(t *testing.T, f func(t testing.TB)) (said string) {
	return runAs(&fakeT{TB: t, name: t.Name(), ctx: t.Context(), cancel: func() {}}, f)
}

func runAs(fake *fakeT, f func(t testing.TB)) (said string) {
	func() {
		defer func() {
			if p := recover(); p != nil {
				if _, ok := p.(failed); !ok {
					panic(p)
				}
			}
		}()
		f(fake)
	}()
	fake.cancel() // as testing does, before the cleanups
	for len(fake.cleanups) > 0 {
		last := len(fake.cleanups) - 1
		cleanup := fake.cleanups[last]
		fake.cleanups = fake.cleanups[:last]
		cleanup()
	}
	if fake.fails == 0 {
		return ""
	}
	return strings.Join(fake.texts, "\n")
}

// test runs f as go test runs a test, for examples.
func test(f func(t testing.TB)) {
	ctx, cancel := context.WithCancel(context.Background())
	if said := runAs(&fakeT{name: "Example", ctx: ctx, cancel: cancel}, f); said != "" {
		fmt.Println(said)
	}
}

func (f *fakeT) Context() context.Context  { return f.ctx }
func (f *fakeT) Helper()                   {}
func (f *fakeT) Name() string              { return f.name }
func (f *fakeT) Cleanup(c func())          { f.cleanups = append(f.cleanups, c) }
func (f *fakeT) Error(args ...any)         { f.say(fmt.Sprint(args...)) }
func (f *fakeT) Errorf(s string, a ...any) { f.say(fmt.Sprintf(s, a...)) }
func (f *fakeT) Fatal(args ...any)         { f.Error(args...); f.FailNow() }
func (f *fakeT) Fatalf(s string, a ...any) { f.Errorf(s, a...); f.FailNow() }
func (f *fakeT) FailNow()                  { panic(failed{strings.Join(f.texts, "\n")}) }
func (f *fakeT) say(text string)           { f.fails++; f.texts = append(f.texts, text) }
