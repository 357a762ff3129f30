package packet

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// CheckGzip returns an error that wraps [ErrGzip] unless level is one of
// -2..9, with 0 for none.
func CheckGzip(level int32) error {
	if level < gzip.HuffmanOnly || level > gzip.BestCompression {
		return fmt.Errorf("packet: %w: level %d is outside %d..%d", ErrGzip, level, gzip.HuffmanOnly, gzip.BestCompression)
	}
	return nil
}

// gzipWriters keeps one writer for each level, and no more: each has some
// 800 KB. Whoever finds it taken makes another one for itself.
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
	zw.Reset(io.Discard) // what is kept must not hold on to dst
	return out.b, nil
}

// appendGunzip appends what src inflates to, if that is at most the given number of
// bytes. It returns how many bytes it has taken from the budget for it, after an
// error too.
func appendGunzip(dst, src []byte, most int64, budget *Budget) (out []byte, cost int64, err error) {
	zr, _ := gzipReaders.Get().(*gzip.Reader)
	if zr == nil {
		zr = new(gzip.Reader)
	}
	defer gzipReaders.Put(zr)
	in := bytes.NewReader(src)
	defer in.Reset(nil) // the pool must not hold on to src
	start := len(dst)
	for member := 1; ; member++ {
		if err := zr.Reset(in); err != nil {
			if err == io.EOF { // a stream of no bytes is a broken one, not an end
				err = io.ErrUnexpectedEOF
			}
			return dst[:start], cost, fmt.Errorf("packet: %w: %w", ErrGzip, err)
		}
		zr.Multistream(false)
		for {
			left := most + 1 - int64(len(dst)-start) // one more byte is one too many
			if len(dst) == cap(dst) {
				room := min(max(512, int64(len(dst))), left) // doubles
				if !budget.Take(room) {
					return dst[:start], cost, fmt.Errorf("packet: decompressing a body: %w", ErrBudget)
				}
				cost += room
				dst = slices.Grow(dst, int(room))
			}
			free := min(int64(cap(dst)-len(dst)), left)
			n, err := zr.Read(dst[len(dst) : int64(len(dst))+free])
			dst = dst[:len(dst)+n]
			if int64(len(dst)-start) > most {
				return dst[:start], cost, fmt.Errorf("packet: %w: inflated body exceeds limit %d", ErrTooLarge, most)
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return dst[:start], cost, fmt.Errorf("packet: %w: %w", ErrGzip, err)
			}
		}
		if in.Len() == 0 {
			return dst, cost, nil
		}
		if member == maxMembers {
			return dst[:start], cost, fmt.Errorf("packet: %w: more than %d streams in one body", ErrGzip, maxMembers)
		}
	}
}
