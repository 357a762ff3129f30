package tp

import (
	"fmt"
	"io"

	"github.com/henrylee2cn/teleport/codec"
)

// Reader returns a reader of the bytes that a stream of []byte receives; the bounds of values do not show.
// Read returns io.EOF at the other side's CloseSend, or when the stream has ended well. Close tells the other
// side that no more is read: its Send fails, and the stream goes on in the other direction. With io.Copy the
// bytes go from the connection's buffers to the writer without another copy. The reader takes the place of
// Recv, and is for one goroutine at a time. Of a stream of other types every Read fails.
func (s *Stream[Send, Recv]) Reader() io.ReadCloser {
	r := &streamReader{core: s.core}
	if !isBytes[Recv]() {
		r.err = fmt.Errorf("tp: Stream.Reader: the stream receives values of type %T, expected []byte",
			*new(Recv))
	}
	return r
}

// Writer returns a writer of the bytes of a stream of []byte. Each Write is sent, in values of up to 64 KiB,
// and waits as Send does; Close is CloseSend. The writer takes the place of Send, and is for one goroutine at
// a time. Of a stream of other types every Write fails.
func (s *Stream[Send, Recv]) Writer() io.WriteCloser {
	w := &streamWriter{core: s.core}
	if !isBytes[Send]() {
		w.err = fmt.Errorf("tp: Stream.Writer: the stream sends values of type %T, expected []byte",
			*new(Send))
	}
	return w
}

// bytesOfValue is how many bytes of a stream are in one value at most.
const bytesOfValue = 64 << 10

type streamWriter struct {
	core *streamCore
	err  error
}

func (w *streamWriter) Write(p []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	for n < len(p) {
		part := p[n:min(len(p), n+bytesOfValue)]
		if err := w.core.send(&part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// ReadFrom is for io.Copy: it reads as much at a time as is sent as one value.
func (w *streamWriter) ReadFrom(r io.Reader) (n int64, err error) {
	if w.err != nil {
		return 0, w.err
	}
	buf := make([]byte, bytesOfValue)
	for {
		k, err := r.Read(buf)
		if k > 0 {
			part := buf[:k]
			if err := w.core.send(&part); err != nil {
				return n, err
			}
			n += int64(k)
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func (w *streamWriter) Close() error {
	if w.err != nil {
		return w.err
	}
	return w.core.closeSend()
}

type streamReader struct {
	core *streamCore
	err  error
	left []byte // of a value that was larger than what Read was given
	rest []byte // memory for left
}

func (r *streamReader) Read(p []byte) (n int, err error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	for n == 0 {
		if len(r.left) > 0 {
			n = copy(p, r.left)
			r.left = r.left[n:]
			return n, nil
		}
		err := r.core.receiveBytes(func(b []byte) error {
			n = copy(p, b)
			r.rest = append(r.rest[:0], b[n:]...)
			r.left = r.rest
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// WriteTo is for io.Copy.
func (r *streamReader) WriteTo(w io.Writer) (n int64, err error) {
	if r.err != nil {
		return 0, r.err
	}
	write := func(b []byte) error {
		k, err := w.Write(b)
		n += int64(k)
		if err == nil && k < len(b) {
			err = io.ErrShortWrite
		}
		return err
	}
	if len(r.left) > 0 {
		left := r.left
		r.left = nil
		err = write(left)
	}
	for err == nil {
		err = r.core.receiveBytes(write)
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (r *streamReader) Close() error {
	if r.err == nil {
		r.core.stopReceiving()
	}
	return nil
}

// receiveBytes waits for a value and calls use with its bytes, which are valid until use returns.
func (c *streamCore) receiveBytes(use func(b []byte) error) error {
	if len(c.chain.postReadValue) > 0 || c.conn.peer.packetLog.bodies {
		var b []byte
		if err := c.receive(&b); err != nil {
			return err
		}
		return use(b)
	}
	var used error // of use, which is not the stream's
	err := c.at.In.Next(func(raw []byte, gzip int32) error {
		if gzip == 0 && len(raw) > 0 && raw[0] == codec.IdString {
			used = use(raw[1:])
			return nil
		}
		var b []byte
		if err := c.decode(raw, gzip, &b); err != nil {
			return err
		}
		used = use(b)
		return nil
	})
	if err != nil {
		return c.receiveError(err)
	}
	c.turn.Store(true)
	return used
}
