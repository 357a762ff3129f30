// Package payload is what the systems under comparison carry and what their
// handlers do: one message, and three ways to answer it.
package payload

import (
	"fmt"
	"time"
)

//go:generate protoc -I.. --go_out=.. --go_opt=module=github.com/henrylee2cn/teleport/bench ../payload/message.proto

// Size is how many bytes a message without data takes in protobuf.
const Size = 61

const (
	name = "order-desk-north"
	text = "thirty bytes of words in a row"
)

// New returns a message of Size bytes, and data beside them.
func New(data []byte) *Message {
	m := &Message{Name: name, Text: text, Data: data}
	m.Stamp(1)
	return m
}

// Stamp makes x the message of the call with the id, which must not be zero, as
// protobuf leaves zeroes out.
func (x *Message) Stamp(id uint64) {
	x.Id = id
	x.Count = count(id)
}

// count is never zero, which would not be encoded, and stays below 127, so that
// every message takes as many bytes.
func count(id uint64) int32 { return int32(id%100) + 1 }

// Check returns an error unless out is the answer to the call with the id and
// so many bytes of data.
func (x *Message) Check(id uint64, data int) error {
	return check(x.GetId(), x.GetCount(), x.GetName(), x.GetText(), len(x.GetData()), id, data)
}

// Plain is the same message as a plain struct, for encodings that work by
// reflection.
type Plain struct {
	Name  string `json:"name"`
	Text  string `json:"text"`
	Id    uint64 `json:"id"`
	Count int32  `json:"count"`
	Data  []byte `json:"data,omitempty"`
}

// NewPlain is New.
func NewPlain(data []byte) *Plain {
	p := &Plain{Name: name, Text: text, Data: data}
	p.Stamp(1)
	return p
}

// Stamp is Message.Stamp.
func (p *Plain) Stamp(id uint64) {
	p.Id = id
	p.Count = count(id)
}

// Check is Message.Check.
func (p *Plain) Check(id uint64, data int) error {
	return check(p.Id, p.Count, p.Name, p.Text, len(p.Data), id, data)
}

func check(gotID uint64, gotCount int32, gotName, gotText string, gotData int, id uint64, data int) error {
	if gotID != id || gotCount != count(id)+1 || gotName != name || gotText != text || gotData != data {
		return fmt.Errorf("the answer to call %d with %d bytes is wrong: id %d, count %d, name %q, text "+
			"%q, %d bytes",
			id, data, gotID, gotCount, gotName, gotText, gotData)
	}
	return nil
}

// Kind is what a handler does before it answers.
type Kind int

const (
	Echo    Kind = iota // nothing
	Doze                // sleeps in one call of DozeEvery
	Compute             // computes for ComputeTime
	kinds
)

// Kinds lists all kinds.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// String returns the name that methods have; "Echo" is the service's method Echo.
func (k Kind) String() string { return [...]string{"Echo", "Doze", "Compute"}[k] }

// Path returns the kind's path in a system that routes by path: "/bench/echo".
func (k Kind) Path() string { return [...]string{"/bench/echo", "/bench/doze", "/bench/compute"}[k] }

// NotePath is the path of what is pushed.
const NotePath = "/note/add"

// A handler that dozes does so in one call of DozeEvery, for DozeTime.
const (
	DozeEvery = 1000
	DozeTime  = 5 * time.Millisecond
)
