package tp

import "errors"

// Plan 9 has texts for errors, of which these are none.
var errnoReset, errnoPipe, errnoTimeout = errors.New("reset"), errors.New("pipe"), errors.New("timeout")
