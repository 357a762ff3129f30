package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	tp "github.com/henrylee2cn/teleport"
)

const (
	// root is what all keys begin with. Its number is that of the record's form.
	root = "/teleport/v1/"
	// maxName bounds the name of a service and an Id, in bytes.
	maxName = 256
	// maxRecord bounds a record, in bytes. A client reads all records of its service.
	maxRecord = 64 << 10
)

// record is what is in etcd of a server, as JSON. The server's Id is in the key.
type record struct {
	Addr    string   `json:"addr"`
	Zone    string   `json:"zone,omitempty"`
	Weight  int      `json:"weight,omitempty"`
	Version string   `json:"version,omitempty"`
	Routes  []string `json:"routes,omitempty"`
	// Instance tells processes apart that enter themselves under one Id.
	Instance string `json:"instance,omitempty"`
	// Leaving says that the server has taken itself off. A record that is gone without having said so is
	// that of a server that was killed, or could not reach etcd for as long as its lease.
	Leaving bool `json:"leaving,omitempty"`
}

// checkName panics, in the name of the caller, if a name cannot be part of a key.
func checkName(caller, name string) {
	switch {
	case name == "":
		panic(caller + ": the name is empty.")
	case len(name) > maxName:
		panic(fmt.Sprintf("%s: the name has %d bytes: expected at most %d.", caller, len(name), maxName))
	case !utf8.ValidString(name):
		panic(fmt.Sprintf("%s: the name %q is not UTF-8.", caller, name))
	}
}

// prefixOf returns what the keys of the service's records begin with. Names are escaped, so that a slash in
// one does not make the keys those of another service.
func prefixOf(service string) string { return root + url.PathEscape(service) + "/" }

func keyOf(service, id string) string { return prefixOf(service) + url.PathEscape(id) }

// idOf returns the Id in a key that begins with prefix.
func idOf(prefix, key string) (string, error) {
	escaped, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return "", fmt.Errorf("the key does not begin with %q", prefix)
	}
	if strings.Contains(escaped, "/") {
		return "", errors.New("the key has a slash in its Id: expected %2F")
	}
	id, err := url.PathUnescape(escaped)
	switch {
	case err != nil:
		return "", fmt.Errorf("the key's Id is not escaped as in a URL: %w", err)
	case id == "" || len(id) > maxName:
		return "", fmt.Errorf("the key's Id has %d bytes: expected 1 to %d", len(id), maxName)
	case url.PathEscape(id) != escaped: // an Id has one key
		return "", fmt.Errorf("the key's Id is escaped as %q: expected %q", escaped, url.PathEscape(id))
	}
	return id, nil
}

// encode returns the record as it is written.
func (r *record) encode() (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	if len(b) > maxRecord {
		return "", fmt.Errorf("etcd: the record of %s takes %d bytes, of which %d routes are most: expected "+
			"at most %d; name fewer with Routes, such as /math/ for all below it", r.Addr, len(b),
			len(r.Routes), maxRecord)
	}
	return string(b), nil
}

// decode reads a record. It returns an error if that describes no server.
func decode(value []byte) (*record, error) {
	if len(value) > maxRecord {
		return nil, fmt.Errorf("the record has %d bytes: expected at most %d", len(value), maxRecord)
	}
	r := new(record)
	if err := json.Unmarshal(value, r); err != nil {
		return nil, fmt.Errorf("the record is not JSON of a server: %w", err)
	}
	switch {
	case r.Leaving:
	case r.Addr == "":
		return nil, errors.New(`the record has no "addr"`)
	case r.Weight < 0 || r.Weight > tp.MaxWeight:
		return nil, fmt.Errorf("the record has the weight %d: expected 0 to %d", r.Weight, tp.MaxWeight)
	}
	return r, nil
}

// server returns the record as a [tp.Server].
func (r *record) server(id string) tp.Server {
	return tp.Server{Id: id, Addr: r.Addr, Zone: r.Zone, Weight: r.Weight, Version: r.Version,
		Routes: r.Routes}
}
