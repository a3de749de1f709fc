// Package calibration finds the ranges of a model's values from samples.
//
// A Source says where samples come from and checks each against the model's
// inputs; an Observer gathers the statistics of one value in one pass as it is
// produced; Range turns statistics into a range by a Method; a Table holds the
// statistics of all values on disk. Statistics do not depend on the order of
// samples or on how they are divided, so that the tables of shards merge into
// the one that all samples at once give, byte for byte.
//
//	src, err := calibration.Open(ctx, []string{"photos"}, inputs, calibration.Options{Image: "resize=256,crop=224,scale=255"})
//	calib, held, err := src.Split(-1)
//	obs := calibration.NewObserver(0, -1)
//	for i := range calib.Len() {
//		feed, err := calib.Load(ctx, i)
//		... // run the model on feed
//		err = obs.Update(calib.Sample(i).Index, y.Shape(), tensor.As[float32](y))
//	}
//	r, err := calibration.Range(obs.Stats(), calibration.MinMax, calibration.MethodOptions{})
package calibration
