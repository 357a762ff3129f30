package packet

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"sync"
)

// CheckGzip returns an error that wraps [ErrGzip] unless level is one of
// -2..9, with 0 for none.
func CheckGzip(level int32) error {
	if level < gzip.HuffmanOnly || level > gzip.BestCompression {
		return fmt.Errorf("packet: %w: level %d is outside %d..%d", ErrGzip, level, gzip.HuffmanOnly, gzip.BestCompression)
	}
	return nil
}

var (
	gzipWriters [gzip.BestCompression - gzip.HuffmanOnly + 1]sync.Pool // by level
	gzipReaders sync.Pool
)

type appendWriter struct{ b []byte }

func (w *appendWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// appendGzip appends src compressed at a level that CheckGzip accepts.
func appendGzip(dst, src []byte, level int32) ([]byte, error) {
	pool := &gzipWriters[level-gzip.HuffmanOnly]
	out := appendWriter{dst}
	zw, _ := pool.Get().(*gzip.Writer)
	if zw == nil {
		var err error
		if zw, err = gzip.NewWriterLevel(&out, int(level)); err != nil {
			return dst, err
		}
	} else {
		zw.Reset(&out)
	}
	defer pool.Put(zw)
	if _, err := zw.Write(src); err != nil {
		return dst, err
	}
	if err := zw.Close(); err != nil {
		return dst, err
	}
	zw.Reset(io.Discard) // the pool must not hold on to dst
	return out.b, nil
}

// appendGunzip appends what src inflates to, if that is at most the given number of bytes.
func appendGunzip(dst, src []byte, most int64) ([]byte, error) {
	zr, _ := gzipReaders.Get().(*gzip.Reader)
	if zr == nil {
		zr = new(gzip.Reader)
	}
	defer gzipReaders.Put(zr)
	in := bytes.NewReader(src)
	defer in.Reset(nil) // the pool must not hold on to src
	if err := zr.Reset(in); err != nil {
		if err == io.EOF { // a stream of no bytes is a broken one, not an end
			err = io.ErrUnexpectedEOF
		}
		return dst, fmt.Errorf("packet: %w: %w", ErrGzip, err)
	}
	start := int64(len(dst))
	for {
		if cap(dst)-len(dst) < 512 {
			dst = slices.Grow(dst, max(512, len(dst))) // doubles
		}
		free := int64(cap(dst) - len(dst))
		if left := most + 1 - (int64(len(dst)) - start); free > left {
			free = left
		}
		n, err := zr.Read(dst[len(dst) : int64(len(dst))+free])
		dst = dst[:len(dst)+n]
		if int64(len(dst))-start > most {
			return dst[:start], fmt.Errorf("packet: %w: inflated body exceeds limit %d", ErrTooLarge, most)
		}
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst[:start], fmt.Errorf("packet: %w: %w", ErrGzip, err)
		}
	}
}
