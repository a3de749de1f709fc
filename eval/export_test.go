package eval

// SetPending bounds the bytes of values that wait for their counterpart.
func SetPending(t *Trace, limit int64) { t.limit = limit }
