package job

import "sync"

// Cache keeps what the last few tasks needed, such as compiled models, by key.
// The zero value keeps nothing; it may be used by several goroutines.
type Cache[T any] struct {
	// Most is how many are kept.
	Most int
	// Drop, if given, is called with what is not kept any more and not in use.
	Drop func(T)

	mu   sync.Mutex
	list []*cached[T] // the last used at the end
}

type cached[T any] struct {
	key   string
	ready sync.WaitGroup
	value T
	err   error
	users int
}

// Use calls f with the value of a key, which make gives if it is not kept.
// Those who want the same value wait for one make.
func (c *Cache[T]) Use(key string, make func() (T, error), f func(T) error) error {
	c.mu.Lock()
	var e *cached[T]
	for i, k := range c.list {
		if k.key == key {
			e = k
			c.list = append(append(c.list[:i:i], c.list[i+1:]...), k)
			break
		}
	}
	mine := e == nil
	if mine {
		e = &cached[T]{key: key}
		e.ready.Add(1)
		c.list = append(c.list, e)
	}
	e.users++
	c.mu.Unlock()
	if mine {
		e.value, e.err = make()
		e.ready.Done()
	}
	e.ready.Wait()
	err := e.err
	if err == nil {
		err = f(e.value)
	}
	c.mu.Lock()
	e.users--
	c.mu.Unlock()
	c.drop(c.Most)
	return err
}

// Close drops everything that is not in use.
func (c *Cache[T]) Close() { c.drop(0) }

// drop drops what is not in use: failures, and of the others the oldest while
// there are more than most.
func (c *Cache[T]) drop(most int) {
	c.mu.Lock()
	var gone []*cached[T]
	for i := 0; i < len(c.list); {
		if k := c.list[i]; k.users == 0 && (k.err != nil || len(c.list) > most) {
			c.list = append(c.list[:i:i], c.list[i+1:]...)
			gone = append(gone, k)
			continue
		}
		i++
	}
	c.mu.Unlock()
	for _, k := range gone {
		if k.err == nil && c.Drop != nil {
			c.Drop(k.value)
		}
	}
}
