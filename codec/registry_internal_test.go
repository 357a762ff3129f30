package codec

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The codecs that are found by a shorter way are those that are registered.
func TestBuiltInCodecsAreTheRegisteredOnes(t *testing.T) {
	for _, tc := range []struct {
		id   byte
		name string
		want Codec
	}{
		{IdJSON, NameJSON, jsonCodec{}},
		{IdProtobuf, NameProtobuf, protobufCodec{}},
		{IdString, NameString, stringCodec{}},
	} {
		registered := registry.byId[tc.id].Load()
		require.NotNil(t, registered, tc.name)
		require.Equal(t, tc.want, registered.Codec)
		require.Equal(t, tc.want, (*registry.byName.Load())[tc.name])
		byId, err := GetById(tc.id)
		require.NoError(t, err)
		require.Equal(t, registered.Codec, byId)
		byName, err := GetByName(tc.name)
		require.NoError(t, err)
		require.Equal(t, registered.Codec, byName)
		require.Equal(t, tc.id, byName.Id())
		require.Equal(t, tc.name, byId.Name())
	}
}
