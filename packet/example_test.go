package packet_test

import (
	"fmt"

	"github.com/henrylee2cn/teleport/packet"
)

func ExampleAppend() {
	frame, err := packet.Append(nil, &packet.Packet{
		HeaderCodec: "json",
		BodyCodec:   "json",
		Header:      &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/math/add"},
		Body:        []int{1, 2},
	}, packet.Limits{})
	fmt.Printf("%q %v\n", frame, err)
	// Output:
	// "\x00\x00\x00&j{\"id\":\"1\",\"type\":1,\"uri\":\"/math/add\"}\x00\x00\x00\x06j[1,2]" <nil>
}

func ExampleParse() {
	input := []byte("\x00\x00\x00\x1dj" + `{"type":3,"uri":"/msg/test"}` + "\x00\x00\x00\x06shello" +
		"the next frame")

	var p packet.Packet
	n, err := packet.Parse(input, &p, func(h *packet.Header) interface{} {
		// The header says what the body is for, and so what to decode it into.
		return new(string)
	}, packet.Limits{})
	fmt.Println(n, err)
	fmt.Println(p.Header.Uri, p.BodyCodec, *p.Body.(*string))
	fmt.Printf("%s\n", input[n:])
	// Output:
	// 43 <nil>
	// /msg/test string hello
	// the next frame
}
