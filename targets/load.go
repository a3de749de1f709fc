package targets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// file is a target in a file: the fields of a Target, and what they start from.
type file struct {
	// Extends names the built-in target whose fields hold where the file has none.
	// Rules of the file come before its rules, which stay but for those of the
	// same operator and class.
	Extends string `json:"extends,omitempty" yaml:"extends,omitempty"`
	Target  `yaml:",inline"`
}

// Load returns the built-in target of the given name or, where there is none,
// the one that the file of this path describes: YAML, or JSON where it ends in
// .json. See docs/targets.md for the form.
func Load(name string) (*Target, error) {
	t, unknown := Get(name)
	if unknown == nil {
		return t, nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(name, "./\\") {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err = Read(f, strings.EqualFold(filepath.Ext(name), ".json"))
	if err != nil {
		return nil, fmt.Errorf("target file %q: %w", name, err)
	}
	if t.Name == "" {
		base := filepath.Base(name)
		t.Name = strings.TrimSuffix(base, filepath.Ext(base))
	}
	return t, nil
}

// maxFile bounds the size of a target file, in bytes.
const maxFile = 1 << 20

// Read reads a target in JSON, or else YAML. Unknown fields are refused.
func Read(r io.Reader, isJSON bool) (*Target, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	decode := func(to any) error { return yaml.UnmarshalWithOptions(data, to, yaml.Strict()) }
	if isJSON {
		decode = func(to any) error {
			d := json.NewDecoder(bytes.NewReader(data))
			d.DisallowUnknownFields()
			return d.Decode(to)
		}
	}
	var f file
	if err := decode(&f); err != nil {
		return nil, err
	}
	t := f.Target
	if f.Extends != "" {
		start, err := Get(f.Extends)
		if err != nil {
			return nil, fmt.Errorf("extends: %w", err)
		}
		own := t.Rules
		f.Target = start.clone()
		f.Target.Rules, f.Target.Name = nil, ""
		if err := decode(&f); err != nil {
			return nil, err
		}
		t = f.Target
		t.Rules = slices.Concat(own, slices.DeleteFunc(slices.Clone(start.Rules), func(r Rule) bool {
			return slices.ContainsFunc(own, func(o Rule) bool { return o.Op == r.Op && o.Class == r.Class })
		}))
	}
	return &t, t.check()
}

// clone returns a copy that shares no slices with t.
func (t *Target) clone() Target {
	c := *t
	c.Sources, c.Activations, c.Weights, c.Floats, c.Rules = slices.Clone(t.Sources), slices.Clone(t.Activations), slices.Clone(t.Weights), slices.Clone(t.Floats), slices.Clone(t.Rules)
	c.Forms, c.Refusals = slices.Clone(t.Forms), slices.Clone(t.Refusals)
	return c
}

// check returns what is wrong with t.
func (t *Target) check() error {
	if len(t.Activations) == 0 || len(t.Weights) == 0 {
		return errors.New("activations and weights each have to list a storage type")
	}
	for _, name := range slices.Concat(t.Activations, t.Weights) {
		if _, err := Type(name); err != nil {
			return err
		}
	}
	few, wide, real := "", false, 0
	for _, name := range t.Weights {
		typ, _ := Type(name)
		switch bits := typ.DType.Bits(); {
		case bits > 8:
			return fmt.Errorf("weights of type %s are not for integer kernels: want i8, u8 or i4", name)
		case bits < 8:
			few = name
		case typ.Real():
			real++
		default:
			wide = true
		}
	}
	if takes := slices.ContainsFunc(t.Rules, func(r Rule) bool { return r.FewBits }); few != "" && !takes {
		return fmt.Errorf("weights of type %s want a rule with few_bits", few)
	} else if few != "" && t.WideOpset == 0 {
		return fmt.Errorf("weights of type %s want a wide_opset", few)
	} else if few == "" && takes {
		return errors.New("a rule has few_bits, but weights list no type of fewer than 8 bits")
	} else if !wide {
		return errors.New("weights have to list i8 or u8")
	}
	for _, name := range t.Activations {
		typ, _ := Type(name)
		if typ.Real() {
			real--
			if !t.FloatBias || !t.SymmetricActivations {
				return fmt.Errorf("activations of type %s want float_bias and symmetric_activations", name)
			}
		}
		if typ.DType.Bits() < 8 {
			return fmt.Errorf("activations of type %s are not for integer kernels", name)
		} else if t.SymmetricActivations && typ.Min >= 0 {
			return fmt.Errorf("symmetric activations want signed types, not %s", name)
		} else if typ.DType.Bits() == 16 && t.WideOpset == 0 {
			return fmt.Errorf("activations of type %s want a wide_opset", name)
		}
	}
	if real != 0 {
		return errors.New("f8e4m3 is for activations and weights together")
	}
	for _, name := range t.Floats {
		if name != "f16" && name != "bf16" {
			return fmt.Errorf("floats lists %q, want f16 or bf16", name)
		}
	}
	for _, v := range []struct {
		name string
		n    int
	}{{"per_tensor_opset", t.PerTensorOpset}, {"per_channel_opset", t.PerChannelOpset}, {"max_opset", t.MaxOpset}} {
		if v.n < 10 || v.n > 28 {
			return fmt.Errorf("%s is %d, want 10 to 28", v.name, v.n)
		}
	}
	if t.PerTensorOpset > t.PerChannelOpset || t.PerChannelOpset > t.MaxOpset {
		return fmt.Errorf("per_tensor_opset %d, per_channel_opset %d and max_opset %d have to rise", t.PerTensorOpset, t.PerChannelOpset, t.MaxOpset)
	}
	if len(t.Rules) == 0 {
		return errors.New("there are no rules")
	}
	for i := range t.Rules {
		r := &t.Rules[i]
		if r.Op == "" {
			return fmt.Errorf("rule %d names no operator", i+1)
		}
		for _, name := range r.Types {
			if !slices.Contains(t.Activations, name) {
				return fmt.Errorf("the rule of %s is for activations of type %q, which the target does not list", r.Op, name)
			}
		}
		if r.Channels < 0 || r.Places < 0 {
			return fmt.Errorf("the rule of %s has negative channels or places", r.Op)
		}
		if !slices.Contains(Classes(), r.Class) {
			return fmt.Errorf("the rule of %s has class %q, want one of %v", r.Op, r.Class, Classes())
		}
		for _, a := range r.Absorbs {
			if !slices.Contains(clamps, a) {
				return fmt.Errorf("the rule of %s absorbs %s, but the clamp of a QuantizeLinear replaces only %v", r.Op, a, clamps)
			}
		}
	}
	return nil
}
