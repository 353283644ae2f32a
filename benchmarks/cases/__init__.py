"""All cases; importing this package registers them."""

from benchmarks.cases import attention as attention
from benchmarks.cases import attention_gpu as attention_gpu
from benchmarks.cases import gather_matmul as gather_matmul
from benchmarks.cases import linear as linear
from benchmarks.cases import products as products
