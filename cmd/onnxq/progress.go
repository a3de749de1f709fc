package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// patienceForBar is how long a stage takes before it is drawn.
const patienceForBar = time.Second

// redraw is how often it is drawn then.
const redraw = 200 * time.Millisecond

// progress draws the stage that runs: a bar with rate and time left where it is
// known how much there is to do, else a spinner with the time that has passed.
// The zero value draws nothing.
type progress struct {
	mu          sync.Mutex
	file        *os.File
	bar         *progressbar.ProgressBar // nil between stages
	stage       string
	began       time.Time
	done, total int // total is 0 for a spinner
	shown       bool
	stop        chan struct{}
}

// progress returns a callback that draws on stderr if that is a terminal, or
// nil.
func (e *env) progress(c *cli.Context) func(stage string, done, total int) {
	f, ok := e.stderr.(*os.File)
	if c.Bool("quiet") || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	e.bar.file = f
	return e.bar.set
}

// endProgress takes what is drawn off the screen.
func (e *env) endProgress() {
	e.bar.mu.Lock()
	defer e.bar.mu.Unlock()
	e.bar.end()
}

func (p *progress) set(stage string, done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stage != p.stage {
		p.end()
	}
	if total > 0 && done == total {
		p.end()
		return
	}
	if p.bar == nil {
		p.begin(stage, total)
	}
	p.done = done
}

func (p *progress) begin(stage string, total int) {
	if total == 1 {
		total = 0 // all or nothing
	}
	unit := "samples"
	if stage == "bench" {
		unit = "runs"
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(p.file), progressbar.OptionSetDescription(stage), progressbar.OptionClearOnFinish(),
		progressbar.OptionSetPredictTime(false),
	}
	if total > 0 {
		options = append(options, progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(unit), progressbar.OptionShowDescriptionAtLineEnd())
		p.bar = progressbar.NewOptions(total, options...)
	} else {
		p.bar = progressbar.NewOptions(-1, append(options, progressbar.OptionSpinnerType(14), progressbar.OptionSetSpinnerChangeInterval(0))...)
	}
	p.bar.StartWithoutRender()
	p.stage, p.total, p.began, p.shown, p.stop = stage, total, time.Now(), false, make(chan struct{})
	go p.turn(p.bar, p.stop)
}

// turn draws bar until stop is closed.
func (p *progress) turn(bar *progressbar.ProgressBar, stop chan struct{}) {
	wait := patienceForBar
	for {
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
		wait = redraw
		p.mu.Lock()
		if p.bar == bar {
			p.shown = true
			p.draw()
		}
		p.mu.Unlock()
	}
}

func (p *progress) draw() {
	if p.total == 0 {
		text := p.stage
		if p.done > 0 {
			text = fmt.Sprintf("%s, %d done", text, p.done)
		}
		p.bar.Describe(text)
		return
	}
	text := p.stage
	if p.done > 0 {
		left := time.Since(p.began) * time.Duration(p.total-p.done) / time.Duration(p.done)
		text = fmt.Sprintf("%s, %v left", text, (left + time.Second - 1).Truncate(time.Second))
	}
	_ = p.bar.Set(p.done)
	p.bar.Describe(text)
}

// end takes the stage off the screen.
func (p *progress) end() {
	if p.bar == nil {
		return
	}
	close(p.stop)
	if p.shown {
		_ = p.bar.Clear()
	}
	p.bar, p.stage = nil, ""
}
