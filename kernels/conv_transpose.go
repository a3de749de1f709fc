package kernels

import "github.com/onnxq/onnxq/internal/par"

// runTransposed multiplies the transposed weights by the image, a few output
// channels at a time, and adds each kernel position's plane to its places in
// the output, kernel positions in order.
func (c *Conv) runTransposed(pool *par.Pool, x []float32, n int, in, out [3]int, y, residual []float32) {
	groups, inSize, outSize := c.spec.Groups, volume(in), volume(out)
	cin, cout := c.spec.Cin/groups, c.spec.Cout/groups
	// Channels a task: enough rows for the kernels, few enough columns of
	// products to stay in the cache.
	each := min(cout, max(1, 48/c.taps, (1<<16)/(c.taps*inSize)))
	perGroup := (cout + each - 1) / each
	lv := level
	pool.For(n*groups*perGroup, max(1, gemmWork/8/(each*c.taps*inSize*cin)), func(first, last int) {
		s := convScratches.get()
		defer convScratches.put(s)
		for i := first; i < last; i++ {
			image, group, co := i/perGroup/groups, i/perGroup%groups, i%perGroup*each
			m := min(each, cout-co)
			cols := grow(&s.a, m*c.taps*inSize)
			g := gemmJob{
				level: lv, m: m * c.taps, n: inSize, k: cin, batch: 1,
				a: Matrix{Data: c.w[(group*cout+co)*c.taps*cin:], Ld: cin},
				b: Matrix{Data: x[(image*groups+group)*cin*inSize:], Ld: inSize},
				c: cols, ldc: inSize,
			}
			g.run(nil, nil)
			for j := range m {
				ch := group*cout + co + j
				at := (image*c.spec.Cout + ch) * outSize
				dst := y[at:][:outSize]
				clear(dst)
				c.scatter(dst, cols[j*c.taps*inSize:], in, out)
				var bias float32
				if c.bias != nil {
					bias = c.bias[ch]
				}
				for k := range dst {
					dst[k] += bias
				}
				if residual != nil {
					for k, v := range residual[at:][:outSize] {
						dst[k] += v
					}
				}
				for k, v := range dst {
					dst[k] = clamp32(v, c.lo, c.hi)
				}
			}
		}
	})
}

// scatter adds the planes of cols, one for each kernel position, to dst.
func (c *Conv) scatter(dst, cols []float32, in, out [3]int) {
	az, ay, ax := c.axes[0], c.axes[1], c.axes[2]
	for kz := range az.kernel {
		for ky := range ay.kernel {
			for kx := range ax.kernel {
				// The input columns whose output exists.
				at := kx*ax.dilation - ax.begin
				lo := 0
				if at < 0 {
					lo = (-at + ax.stride - 1) / ax.stride
				}
				hi := in[2]
				if at >= out[2] {
					hi = 0
				} else {
					hi = min(hi, (out[2]-at+ax.stride-1)/ax.stride)
				}
				for z := range in[0] {
					oz := z*az.stride + kz*az.dilation - az.begin
					for r := range in[1] {
						src := cols[:in[2]]
						cols = cols[in[2]:]
						oy := r*ay.stride + ky*ay.dilation - ay.begin
						if lo >= hi || uint(oz) >= uint(out[0]) || uint(oy) >= uint(out[1]) {
							continue
						}
						row := dst[(oz*out[1]+oy)*out[2]:][:out[2]]
						o := at + lo*ax.stride
						for _, v := range src[lo:hi] {
							row[o] += v
							o += ax.stride
						}
					}
				}
			}
		}
	}
}
