package socket_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/socket"
)

// The sender with the mode Try is not held up by a side that does not read; all of it arrives in order when
// that does.
func TestSendTry(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			const n = 400 // of 16 KiB: more than the kernel's buffers hold, less than may wait
			body := strings.Repeat("x", 16<<10)
			for i := range n {
				require.NoError(t, sendFrame(a, encode(t, a, message(strconv.Itoa(i), body)), socket.Try))
			}
			for i := range n {
				requireMessage(t, b, strconv.Itoa(i), body)
			}
			require.NoError(t, sendFrame(a, encode(t, a, message("last", "alone")), socket.Try))
			requireMessage(t, b, "last", "alone")
			require.NoError(t, b.Close())
			// until the writer has noticed
			for sendFrame(a, encode(t, a, message("late", body)), socket.Try) == nil {
				time.Sleep(time.Millisecond)
			}
			require.NoError(t, a.Close())
		})
	}
}

// Who waits for room, or for a turn, gives up with its context, and others go on.
func TestWaitsEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{Buffer: 10})
		a := socket.New(ca, socket.Options{MaxOutput: 1000})
		b := socket.New(cb, socket.Options{})
		body := strings.Repeat("x", 900)
		for i := range 2 {
			require.NoError(t, sendFrame(a, encode(t, a, message(strconv.Itoa(i), body)), socket.Later))
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		for name, wait := range map[string]func() error{
			"permit": func() error { _, err := a.Permit(ctx); return err },
			"post":   func() error { return sendFor(ctx, a, encode(t, a, message("x", body)), socket.Later) },
			"try":    func() error { return sendFor(ctx, a, encode(t, a, message("x", body)), socket.Try) },
		} {
			err := wait()
			requireWriteError(t, err, context.DeadlineExceeded)
			require.True(t, err.(*socket.WriteError).Unsent, name)
			require.Equal(t, time.Second, time.Since(began))
		}
		// More than there are permits: the last ones wait for theirs.
		errs := make(chan error, 100)
		for range cap(errs) {
			go func() { errs <- func() error { _, err := a.Permit(ctx); return err }() }()
		}
		for range cap(errs) {
			requireWriteError(t, <-errs, context.DeadlineExceeded)
		}
		done := make(chan error, 1)
		go func() {
			permit, err := a.Permit(t.Context())
			if err == nil {
				var f socket.Frame
				if f, err = a.Encode(permit, nil, message("2", body)); err == nil {
					err = sendFrame(a, f, socket.Now)
				}
			}
			done <- err
		}()
		for i := range 3 {
			requireMessage(t, b, strconv.Itoa(i), body)
		}
		require.NoError(t, <-done)
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}
