// Package models holds two small float models that the project trained itself,
// with calibration samples and labelled test data: a convolutional network that
// reads digits and a transformer that predicts prose byte by byte. They are what
// `onnxq demo` quantizes, and whole-pipeline tests use them.
//
// README.md has a card for each: architecture, data, licence, metric and how to
// train it again. Measuring a model takes an executor, which is the caller's:
//
//	s := models.Digits()
//	var outputs [][]float32
//	for name := range files of s.Eval in order {
//		outputs = append(outputs, run(model, feed(s.Eval, name)))
//	}
//	accuracy, err := s.Score(outputs) // compare with s.Float
package models
