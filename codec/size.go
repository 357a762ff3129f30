package codec

import (
	"math"

	"github.com/henrylee2cn/teleport/internal/printable"
)

// A Sizer is a Codec that knows how much memory a value takes when it is decoded, which can
// be hundreds of times as much as its data: `[{},{}]` may be a slice of large structs. It is
// optional; json, protobuf and string do it. What other codecs decode is counted as the
// length of its data.
//
// Both methods count memory that is allocated while data is decoded into v, in bytes, with
// what the growth of slices and maps leaves unused. They may count too much, and should not
// count too little. They must not keep data, nor fail or panic for data that does not decode.
type Sizer interface {
	// DecodedBound returns the most that data of that length can become in v. It is called
	// for every body that is received: it must not look at the whole of data.
	DecodedBound(data []byte, v interface{}) int64
	// DecodedSize counts what data becomes in v, in one pass and without taking memory in
	// proportion to it. It stops when that is more than most, and then returns any number
	// above it.
	DecodedSize(data []byte, v interface{}, most int64) int64
}

// DecodedBound calls that method of c, see [Sizer].
func DecodedBound(c Codec, data []byte, v interface{}) int64 {
	if s, ok := c.(Sizer); ok {
		return s.DecodedBound(data, v)
	}
	return int64(len(data))
}

// DecodedSize calls that method of c, see [Sizer]. If it panics the size is beyond any limit.
func DecodedSize(c Codec, data []byte, v interface{}, most int64) (size int64) {
	s, ok := c.(Sizer)
	if !ok {
		return int64(len(data))
	}
	returned := false
	defer func() {
		if !returned {
			_ = printable.Value(recover(), maxPrinted)
			size = math.MaxInt64
		}
	}()
	size = s.DecodedSize(data, v, most)
	returned = true
	return size
}

// What things take in memory, in bytes, at most, as of Go 1.26.
const (
	sizeOfWord   = 8
	sizeOfString = 2 * sizeOfWord
	sizeOfSlice  = 3 * sizeOfWord
	sizeOfMap    = 6 * sizeOfWord
	slotsOfGroup = 8   // of a map, which come at once
	maxInMap     = 128 // what is larger is behind a pointer
)

// allocated is what an object of so many bytes takes: the size classes of the allocator
// are up to an eighth apart, and 8 bytes at least; what is larger has pages of its own.
func allocated(n int64) int64 {
	const largest, page = 32 << 10, 8 << 10
	if n <= 0 {
		return 0
	}
	if n > largest {
		return (n + page - 1) &^ (page - 1)
	}
	return (n + n/8 + sizeOfWord - 1) &^ (sizeOfWord - 1)
}

// inSlice is what an element of a slice takes, which grows to twice its size.
func inSlice(size int64) int64 { return 2 * max(size, 1) }

// mapSlot is what an entry of a map takes in one of its groups.
func mapSlot(key, value int64) int64 {
	slot := 1 + min(key, maxInMap) + min(value, maxInMap)
	return slot
}

// mapGroup is what the first entry of a map takes.
func mapGroup(key, value int64) int64 {
	return allocated(slotsOfGroup*mapSlot(key, value) + sizeOfWord)
}

// mapEntry is what one of many entries takes: a map grows to twice its size when seven
// eighths of its slots are in use.
func mapEntry(key, value int64) int64 {
	n := 5 * mapSlot(key, value) / 2
	for _, size := range []int64{key, value} {
		if size > maxInMap {
			n += allocated(size)
		}
	}
	return n
}

// boundOf is base and n times perByte, at most what an int64 can hold.
func boundOf(base, perByte int64, n int) int64 {
	if perByte > 0 && int64(n) > (math.MaxInt64-base)/perByte {
		return math.MaxInt64
	}
	return base + perByte*int64(n)
}
