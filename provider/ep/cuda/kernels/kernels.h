// The kernels of the provider on a GPU, one file a family of ops. "OnHost": inputs and outputs are host memory.
#pragma once

#include "provider/ort_api.h"

namespace flashllm::ep {

OrtKernelCreateFunc SparseMatMulOnGpu();            // sparse_matmul.cc
OrtKernelCreateFunc GemmOnGpu();                    // dense_matmul.cc
OrtKernelCreateFunc MatMulOnGpu();                  //
OrtKernelCreateFunc GroupQueryAttentionOnGpu();     // attention.cc
OrtKernelCreateFunc LayerNormalizationOnGpu();      // layer_norm.cc
OrtKernelCreateFunc SkipLayerNormalizationOnGpu();  //
OrtKernelCreateFunc GatherOnGpu();                  // gather.cc
OrtKernelCreateFunc AddOnGpu();                     // elementwise.cc
OrtKernelCreateFunc SubOnGpu();                     //
OrtKernelCreateFunc MulOnGpu();                     //
OrtKernelCreateFunc DivOnGpu();                     //
OrtKernelCreateFunc MinOnGpu();                     //
OrtKernelCreateFunc MaxOnGpu();                     //
OrtKernelCreateFunc PowOnGpu();                     //
OrtKernelCreateFunc EqualOnGpu();                   //
OrtKernelCreateFunc LessOnGpu();                    //
OrtKernelCreateFunc LessOrEqualOnGpu();             //
OrtKernelCreateFunc GreaterOnGpu();                 //
OrtKernelCreateFunc GreaterOrEqualOnGpu();          //
OrtKernelCreateFunc AndOnGpu();                     //
OrtKernelCreateFunc OrOnGpu();                      //
OrtKernelCreateFunc XorOnGpu();                     //
OrtKernelCreateFunc NotOnGpu();                     //
OrtKernelCreateFunc NegOnGpu();                     //
OrtKernelCreateFunc AbsOnGpu();                     //
OrtKernelCreateFunc SqrtOnGpu();                    //
OrtKernelCreateFunc ExpOnGpu();                     //
OrtKernelCreateFunc TanhOnGpu();                    //
OrtKernelCreateFunc ReluOnGpu();                    //
OrtKernelCreateFunc GeluOnGpu();                    //
OrtKernelCreateFunc CastOnGpu();                    //
OrtKernelCreateFunc WhereOnGpu();                   //
OrtKernelCreateFunc SoftmaxOnGpu();                 // reduce.cc
OrtKernelCreateFunc ReduceMaxOnGpu();               //
OrtKernelCreateFunc ReduceMinOnGpu();               //
OrtKernelCreateFunc ReduceSumOnGpu();               //
OrtKernelCreateFunc ReduceMeanOnGpu();              //
OrtKernelCreateFunc CumSumOnGpu();                  //
OrtKernelCreateFunc ArgMaxOnGpu();                  //
OrtKernelCreateFunc RangeOnGpu();                   //
OrtKernelCreateFunc ExpandOnGpu();                  // moves.cc
OrtKernelCreateFunc TransposeOnGpu();               //
OrtKernelCreateFunc SliceOnGpu();                   //
OrtKernelCreateFunc SplitOnGpu();                   //
OrtKernelCreateFunc ConcatOnGpu();                  //
OrtKernelCreateFunc ReshapeOnGpu();                 // views.cc
OrtKernelCreateFunc SqueezeOnGpu();                 //
OrtKernelCreateFunc UnsqueezeOnGpu();               //
OrtKernelCreateFunc FlattenOnGpu();                 //
OrtKernelCreateFunc IdentityOnGpu();                //
OrtKernelCreateFunc ShapeOnHost();                  // shapes.cc
OrtKernelCreateFunc ConcatOnHost();                 //
OrtKernelCreateFunc CastOnHost();                   //
OrtKernelCreateFunc SubOnHost();                    //
OrtKernelCreateFunc MemcpyFromHostOnGpu();          // memcpy.cc
OrtKernelCreateFunc MemcpyToHostOnGpu();            //

}  // namespace flashllm::ep
