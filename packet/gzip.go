package packet

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// CheckGzip returns an error that wraps [ErrGzip] unless level is one of
// -2..9, with 0 for none.
func CheckGzip(level int32) error {
	if level < gzip.HuffmanOnly || level > gzip.BestCompression {
		return fmt.Errorf("packet: %w: level %d is outside %d..%d", ErrGzip, level, gzip.HuffmanOnly,
			gzip.BestCompression)
	}
	return nil
}

// gzipWriters keeps one writer for each level, and no more: each takes some
// 800 KB. A goroutine that finds it in use makes another.
var gzipWriters [gzip.BestCompression - gzip.HuffmanOnly + 1]atomic.Pointer[gzip.Writer]

var gzipReaders sync.Pool

// maxMembers bounds how many gzip streams may follow each other in one body. They
// can be empty, and then millions of them fit into a body.
const maxMembers = 1000

type appendWriter struct{ b []byte }

func (w *appendWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// appendGzip appends src compressed at a level that CheckGzip accepts.
func appendGzip(dst, src []byte, level int32) ([]byte, error) {
	kept := &gzipWriters[level-gzip.HuffmanOnly]
	out := appendWriter{dst}
	zw := kept.Swap(nil)
	if zw == nil {
		var err error
		if zw, err = gzip.NewWriterLevel(&out, int(level)); err != nil {
			return dst, err
		}
	} else {
		zw.Reset(&out)
	}
	defer func() { kept.Store(zw) }()
	if _, err := zw.Write(src); err != nil {
		return dst, err
	}
	if err := zw.Close(); err != nil {
		return dst, err
	}
	zw.Reset(io.Discard) // the writer that is kept must not hold on to dst
	return out.b, nil
}

// inflater reads the gzip streams that src consists of as one. Its errors are those
// of a body.
type inflater struct {
	zr      *gzip.Reader
	src     *bytes.Reader
	members int
}

// next begins the next stream.
func (r *inflater) next() error {
	if r.members++; r.members > maxMembers {
		return fmt.Errorf("packet: %w: more than %d streams in one body", ErrGzip, maxMembers)
	}
	if err := r.zr.Reset(r.src); err != nil {
		if err == io.EOF { // a stream of no bytes is a broken one, not an end
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("packet: %w: %w", ErrGzip, err)
	}
	r.zr.Multistream(false)
	return nil
}

// Read reads up to the end of a stream.
func (r *inflater) Read(p []byte) (int, error) {
	if r.members == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n, err := r.zr.Read(p)
	switch {
	case err == nil:
	case err != io.EOF:
		err = fmt.Errorf("packet: %w: %w", ErrGzip, err)
	case r.src.Len() > 0:
		err = r.next()
	}
	return n, err
}

// rewind begins anew.
func (r *inflater) rewind(src []byte) {
	r.src.Reset(src)
	r.members = 0
}

// appendGunzip appends what src inflates to, if that is at most the given number of
// bytes, and returns how many bytes it has taken from the budget for it. More than
// fits into a lent buffer is inflated twice, to count it first: what is refused
// takes no memory, and what is not takes no more than it must.
func appendGunzip(dst, src []byte, most int64, budget *Budget) (out []byte, cost int64, err error) {
	zr, _ := gzipReaders.Get().(*gzip.Reader)
	if zr == nil {
		zr = new(gzip.Reader)
	}
	defer gzipReaders.Put(zr)
	r := inflater{zr: zr, src: bytes.NewReader(src)}
	defer r.src.Reset(nil) // the pool must not hold on to src
	lent := bufpool.GetSize(bufpool.Full)
	defer bufpool.Put(lent)
	p := lent.B[:cap(lent.B)]
	n, all := 0, int64(0)
	for err == nil {
		if n == len(p) {
			n = 0 // it does not fit; from here on it is only counted
		}
		var k int
		k, err = r.Read(p[n:])
		n += k
		if all += int64(k); all > most {
			return dst, 0, fmt.Errorf("packet: %w: inflated body exceeds limit %d", ErrTooLarge, most)
		}
	}
	if err != io.EOF {
		return dst, 0, err
	}
	if !budget.Take(all) {
		return dst, 0, fmt.Errorf("packet: decompressing a body: %w", ErrBudget)
	}
	if int64(n) == all {
		return append(dst, p[:n]...), all, nil
	}
	at := len(dst)
	out = append(make([]byte, 0, at+int(all)), dst...)[:at+int(all)]
	r.rewind(src)
	if _, err := io.ReadFull(&r, out[at:]); err != nil {
		return dst, all, err // cannot happen: the first pass has found no error
	}
	return out, all, nil
}
