package kernels

// qIm2row is the matrix of a quantized convolution's input: row output
// position, column (kernel position, channel).
type qIm2row struct {
	x        []byte
	cin      int // channels of a group
	channels int // of the input
	zero     byte
	axes     *[3]axis
	in, out  [3]int
}

// pack writes the rows m0 to m0+m to dst, ld bytes apart.
func (q *qIm2row) pack(dst []byte, ld, m0, m int) {
	az, ay, ax := q.axes[0], q.axes[1], q.axes[2]
	// Kernel positions that lie side by side in the input are one copy.
	joined := ax.dilation == 1 && q.cin == q.channels
	imageSize := volume(q.in) * q.channels
	for i := range m {
		p := m0 + i
		x0 := p%q.out[2]*ax.stride - ax.begin
		p /= q.out[2]
		y0 := p%q.out[1]*ay.stride - ay.begin
		p /= q.out[1]
		z0 := p%q.out[0]*az.stride - az.begin
		image := q.x[p/q.out[0]*imageSize:]
		row := dst[i*ld : (i+1)*ld]
		for kz := range az.kernel {
			for ky := range ay.kernel {
				z, y := z0+kz*az.dilation, y0+ky*ay.dilation
				line := row[:ax.kernel*q.cin]
				row = row[len(line):]
				if uint(z) >= uint(q.in[0]) || uint(y) >= uint(q.in[1]) {
					fillBytes(line, q.zero)
					continue
				}
				src := image[(z*q.in[1]+y)*q.in[2]*q.channels:]
				if joined {
					lo, hi := min(max(0, -x0), ax.kernel), max(0, min(ax.kernel, q.in[2]-x0))
					if lo < hi {
						fillBytes(line[:lo*q.cin], q.zero)
						copy(line[lo*q.cin:hi*q.cin], src[(x0+lo)*q.cin:])
						fillBytes(line[hi*q.cin:], q.zero)
					} else {
						fillBytes(line, q.zero)
					}
					continue
				}
				for kx := range ax.kernel {
					d := line[kx*q.cin : (kx+1)*q.cin]
					if x := x0 + kx*ax.dilation; uint(x) < uint(q.in[2]) {
						copy(d, src[x*q.channels:])
					} else {
						fillBytes(d, q.zero)
					}
				}
			}
		}
	}
}

func fillBytes(d []byte, v byte) {
	for i := range d {
		d[i] = v
	}
}
