package pipe_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	n, err := c.Write([]byte(s))
	require.NoError(t, err)
	require.Equal(t, len(s), n)
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	half, ok := c.(interface{ CloseWrite() error })
	require.True(t, ok)
	require.NoError(t, half.CloseWrite())
}

func TestBothDirections(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	write(t, a, "to b, ")
	write(t, a, "and more")
	write(t, b, "to a")
	buf := make([]byte, 100)
	n, err := b.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "to b, and more", string(buf[:n]), "what is buffered comes at once")
	n, err = a.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "to a", string(buf[:n]))
}

func TestAddresses(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	c, _ := pipe.New(pipe.Options{})
	require.Equal(t, "pipe", a.LocalAddr().Network())
	require.Equal(t, a.LocalAddr(), b.RemoteAddr())
	require.Equal(t, b.LocalAddr(), a.RemoteAddr())
	require.NotEqual(t, a.LocalAddr().String(), b.LocalAddr().String())
	require.NotEqual(t, a.LocalAddr().String(), c.LocalAddr().String())
}

func TestReadOfNothing(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	n, err := a.Read(nil)
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = b.Write(nil)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestChunk(t *testing.T) {
	a, b := pipe.New(pipe.Options{Chunk: 3})
	write(t, a, "12345678")
	closeWrite(t, a)
	var got []string
	buf := make([]byte, 100)
	for {
		n, err := b.Read(buf)
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		got = append(got, string(buf[:n]))
	}
	require.Equal(t, []string{"123", "456", "78"}, got)
}

// The bytes given to Write are copied: the writer may use them again at once.
func TestWriteKeepsNoBytes(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	p := []byte("mine")
	_, err := a.Write(p)
	require.NoError(t, err)
	copy(p, "used")
	got := make([]byte, 4)
	_, err = io.ReadFull(b, got)
	require.NoError(t, err)
	require.Equal(t, "mine", string(got))
}

func TestWriteWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe.New(pipe.Options{Buffer: 4})
		write(t, a, "1234") // fits
		done := make(chan error, 1)
		go func() {
			_, err := a.Write([]byte("567890"))
			done <- err
		}()
		synctest.Wait()
		require.Empty(t, done)
		got := make([]byte, 2)
		_, err := io.ReadFull(b, got)
		require.NoError(t, err)
		synctest.Wait()
		require.Empty(t, done, "room for two of six bytes")
		got = make([]byte, 8)
		_, err = io.ReadFull(b, got)
		require.NoError(t, err)
		require.Equal(t, "34567890", string(got))
		require.NoError(t, <-done)
	})
}

func TestDefaultBuffer(t *testing.T) {
	a, _ := pipe.New(pipe.Options{})
	write(t, a, strings.Repeat("x", 64<<10))
	require.NoError(t, a.SetWriteDeadline(time.Unix(1, 0)))
	n, err := a.Write([]byte("x"))
	require.Zero(t, n)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestHalfClose(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	write(t, a, "last")
	closeWrite(t, a)
	closeWrite(t, a) // a second time changes nothing
	_, err := a.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, "last", string(got))

	write(t, b, "still there") // the other direction goes on
	closeWrite(t, b)
	got, err = io.ReadAll(a)
	require.NoError(t, err)
	require.Equal(t, "still there", string(got))
}

func TestClose(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	write(t, a, "last")
	write(t, b, "never read")
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())

	_, err := a.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = a.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	_, err = b.Write([]byte("x"))
	require.ErrorIs(t, err, errno.Pipe)
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, "last", string(got), "what was written before still arrives")
}

// Close ends what waits, on either end.
func TestCloseWakes(t *testing.T) {
	for _, tc := range []struct {
		name            string
		closes          int // 0 the first end, 1 the second
		ownRead, ownErr error
		itsRead, itsErr error
	}{
		{"this end", 0, net.ErrClosed, io.ErrClosedPipe, io.EOF, errno.Pipe},
		{"the other end", 1, io.EOF, errno.Pipe, net.ErrClosed, io.ErrClosedPipe},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe.New(pipe.Options{Buffer: 1})
				c, d := pipe.New(pipe.Options{Buffer: 1})
				read := func(c net.Conn) chan error {
					done := make(chan error, 1)
					go func() {
						_, err := c.Read(make([]byte, 1))
						done <- err
					}()
					return done
				}
				fill := func(c net.Conn) chan error {
					done := make(chan error, 1)
					go func() {
						_, err := c.Write([]byte("12"))
						done <- err
					}()
					return done
				}
				readA, readB, writeC, writeD := read(a), read(b), fill(c), fill(d)
				synctest.Wait()
				require.Zero(t, len(readA)+len(readB)+len(writeC)+len(writeD))
				require.NoError(t, []net.Conn{a, b}[tc.closes].Close())
				require.NoError(t, []net.Conn{c, d}[tc.closes].Close())
				require.ErrorIs(t, <-readA, tc.ownRead)
				require.ErrorIs(t, <-readB, tc.itsRead)
				require.ErrorIs(t, <-writeC, tc.ownErr)
				require.ErrorIs(t, <-writeD, tc.itsErr)
			})
		})
	}
}

func TestDeadlines(t *testing.T) {
	const wait = 3 * time.Second
	type end struct {
		name string
		set  func(net.Conn, time.Time) error
		do   func(net.Conn) error
	}
	read := func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	fill := func(c net.Conn) error { _, err := c.Write([]byte("123")); return err }
	for _, e := range []end{
		{"read", net.Conn.SetReadDeadline, read},
		{"write", net.Conn.SetWriteDeadline, fill},
		{"both, reading", net.Conn.SetDeadline, read},
		{"both, writing", net.Conn.SetDeadline, fill},
	} {
		t.Run(e.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _ := pipe.New(pipe.Options{Buffer: 2})
				start := time.Now()
				require.NoError(t, e.set(a, start.Add(wait)))
				err := e.do(a)
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				var ne net.Error
				require.ErrorAs(t, err, &ne)
				require.True(t, ne.Timeout())
				require.Equal(t, wait, time.Since(start))
				require.ErrorIs(t, e.do(a), os.ErrDeadlineExceeded, "it stays past")

				require.NoError(t, e.set(a, start), "one that is past already")
				require.ErrorIs(t, e.do(a), os.ErrDeadlineExceeded)

				// Set anew while the call waits: later, sooner, none, and past.
				begin := func(first time.Duration) chan error {
					require.NoError(t, e.set(a, time.Now().Add(first)))
					done := make(chan error, 1)
					go func() { done <- e.do(a) }()
					synctest.Wait()
					return done
				}
				start = time.Now()
				done := begin(wait)
				require.NoError(t, e.set(a, start.Add(2*wait)))
				require.ErrorIs(t, <-done, os.ErrDeadlineExceeded)
				require.Equal(t, 2*wait, time.Since(start))

				start = time.Now()
				done = begin(2 * wait)
				require.NoError(t, e.set(a, start.Add(wait)))
				require.ErrorIs(t, <-done, os.ErrDeadlineExceeded)
				require.Equal(t, wait, time.Since(start))

				done = begin(wait)
				require.NoError(t, e.set(a, time.Time{}))
				time.Sleep(10 * wait) // of the bubble's clock
				synctest.Wait()
				require.Empty(t, done)
				require.NoError(t, e.set(a, time.Unix(1, 0)))
				require.ErrorIs(t, <-done, os.ErrDeadlineExceeded)
			})
		})
	}
}

// A deadline of one direction leaves the other alone, and so does the other end.
func TestDeadlinesAreIndependent(t *testing.T) {
	a, b := pipe.New(pipe.Options{})
	require.NoError(t, a.SetReadDeadline(time.Unix(1, 0)))
	write(t, a, "x")
	write(t, b, "y")
	buf := make([]byte, 1)
	_, err := b.Read(buf)
	require.NoError(t, err)
	_, err = a.Read(buf)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "even with bytes there")
	require.NoError(t, a.SetDeadline(time.Time{}))
	_, err = a.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "y", string(buf))
}

// A write that its deadline ends says how much it has written.
func TestPartialWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe.New(pipe.Options{Buffer: 4})
		require.NoError(t, a.SetWriteDeadline(time.Now().Add(time.Second)))
		n, err := a.Write([]byte("123456"))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 4, n)
		closeWrite(t, a)
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Equal(t, "1234", string(got))
	})
}

func TestCutAfter(t *testing.T) {
	const text = "0123456789"
	for cut := range len(text) {
		o := pipe.Options{CutAfter: cut}
		if cut == 0 {
			o.CutAfter = -1
		}
		a, b := pipe.New(o)
		write(t, b, "from the other end, which is not counted")
		if cut > 2 {
			write(t, a, text[:2])
			n, err := a.Write([]byte(text[2:]))
			require.ErrorIs(t, err, io.ErrClosedPipe)
			require.Equal(t, cut-2, n)
		} else {
			n, err := a.Write([]byte(text))
			require.ErrorIs(t, err, io.ErrClosedPipe)
			require.Equal(t, cut, n)
		}
		// The first end is gone.
		_, err := a.Write([]byte("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		_, err = a.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
		// The other end reads what had come, and its own output is lost.
		_, err = b.Write([]byte("x"))
		require.ErrorIs(t, err, errno.Pipe)
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Equal(t, text[:cut], string(got))
	}
}

func TestCutAfterJustAsManyBytes(t *testing.T) {
	a, b := pipe.New(pipe.Options{CutAfter: 4})
	write(t, a, "1234")
	write(t, b, "5678")
	got := make([]byte, 4)
	_, err := io.ReadFull(b, got)
	require.NoError(t, err)
	_, err = io.ReadFull(a, got)
	require.NoError(t, err)
	_, err = a.Write([]byte("5"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	_, err = b.Read(got)
	require.ErrorIs(t, err, io.EOF)
}

// The cut comes in the middle of a write that has to wait for room.
func TestCutAfterMoreThanTheBuffer(t *testing.T) {
	a, b := pipe.New(pipe.Options{Buffer: 4, CutAfter: 10})
	done := make(chan error, 1)
	go func() {
		_, err := a.Write(make([]byte, 100))
		done <- err
	}()
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Len(t, got, 10)
	require.ErrorIs(t, <-done, io.ErrClosedPipe)
}

func TestManyBytesBothWaysAtOnce(t *testing.T) {
	a, b := pipe.New(pipe.Options{Buffer: 1000, Chunk: 333})
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		wg.Go(func() {
			_, err := c.Write(data)
			assert.NoError(t, err)
			assert.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
		})
		wg.Go(func() {
			got, err := io.ReadAll(c)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(data, got))
		})
	}
	wg.Wait()
}
