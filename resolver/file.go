package resolver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

const (
	fileEvery = time.Second
	// maxFile is the size in bytes of the largest file: 100,000 servers with long names fit in.
	maxFile = 16 << 20
	// settled is for how long a file must be as it was before it is believed that its time would have changed
	// with it: some file systems count in steps of two seconds.
	settled = 3 * time.Second
)

// File returns a [tp.Resolver] that reads the servers from a file, and again whenever that has changed: a
// JSON array of objects with the fields of [tp.Server], in letters of any case, of which addr alone is
// needed:
//
//	[
//	  {"addr": "10.0.0.1:9090", "zone": "a"},
//	  {"id": "big", "addr": "10.0.0.2:9090", "zone": "b", "weight": 200}
//	]
//
// The file is looked at every second, see [Every], and read if its time, its size or the file itself is
// another. A file that another one was renamed to is seen, and one that is written in place may be seen half
// written: that is no JSON, and is read again. While the file is not there, or is wrong in any way, the
// servers are as they were. A list without servers, [], says that there are none.
//
// File panics if the path is empty or an option is for [DNS].
func File(path string, option ...Option) tp.Resolver {
	o := newOptions("File", fileEvery, option)
	if path == "" {
		panic("resolver: File: the path is empty.")
	}
	if len(o.ofDNS) > 0 {
		panic(fmt.Sprintf("resolver: File(%q): %s is an option of DNS.", path, o.ofDNS[0]))
	}
	if abs, err := filepath.Abs(path); err == nil { // whatever becomes the working directory
		path = abs
	}
	return &file{path, o.every}
}

type file struct {
	path  string
	every time.Duration
}

// Resolve is for [tp.Cluster], see [tp.Resolver].
func (f *file) Resolve(ctx context.Context, update func(servers []tp.Server)) error {
	v := fileView{path: f.path}
	return watch(ctx, "the servers of "+f.path, f.every, f.every, update,
		func(context.Context) ([]tp.Server, time.Duration, error) {
			servers, err := v.look(time.Now())
			return servers, f.every, err
		})
}

// fileView is what is known of a file from the last time that it was read.
type fileView struct {
	path string
	info os.FileInfo // nil if it was not read, or was wrong
	read time.Time
	text []byte // of the servers that were told
}

// look returns the servers, or nil if they are as they were.
func (v *fileView) look(now time.Time) ([]tp.Server, error) {
	info, err := os.Stat(v.path)
	if err != nil {
		v.info = nil
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe for example, which may never end
		v.info = nil
		return nil, fmt.Errorf("%s is no regular file", v.path)
	}
	if info.Size() > maxFile { // which would be read every second
		v.info = nil
		return nil, fmt.Errorf("%s has more than %d bytes", v.path, maxFile)
	}
	if last := v.info; last != nil && os.SameFile(info, last) && info.Size() == last.Size() &&
		info.ModTime().Equal(last.ModTime()) && v.read.Sub(info.ModTime()) > settled {
		return nil, nil
	}
	v.info = nil
	text, err := readBounded(v.path)
	if err != nil {
		return nil, err
	}
	if v.text != nil && bytes.Equal(text, v.text) {
		v.info, v.read = info, now
		return nil, nil
	}
	servers, err := parseServers(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.path, err)
	}
	v.info, v.read, v.text = info, now, text
	return servers, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return text, err
}

// parseServers returns the servers of a file, never nil without an error.
func parseServers(text []byte) ([]tp.Server, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields() // a field whose name is misspelt would have no effect
	servers := []tp.Server{}
	if err := d.Decode(&servers); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("it ends after %d bytes, expected a JSON array of servers", len(text))
		}
		return nil, fmt.Errorf("%s%w; expected a JSON array of servers such as %s, with the fields id, "+
			"addr, zone, weight, version and routes", lineOf(text, err), err, `{"addr": "10.0.0.1:9090"}`)
	}
	if servers == nil {
		return nil, errors.New("it is null, expected a JSON array of servers")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("there is more behind the array of servers, from byte %d", d.InputOffset())
	}
	return servers, check(servers)
}

// lineOf says where in the text a decoder has found the error, if it says so.
func lineOf(text []byte, err error) string {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	var at int64
	switch {
	case errors.As(err, &syntax):
		at = syntax.Offset
	case errors.As(err, &typ):
		at = typ.Offset
	default:
		return ""
	}
	return fmt.Sprintf("line %d: ", 1+bytes.Count(text[:min(max(at, 0), int64(len(text)))], []byte{'\n'}))
}
