package codec

// DecodedBound is a placeholder until the real one is merged.
func DecodedBound(c Codec, data []byte, v interface{}) int64 { return int64(len(data)) }

// DecodedSize is a placeholder until the real one is merged.
func DecodedSize(c Codec, data []byte, v interface{}, most int64) int64 { return int64(len(data)) }
